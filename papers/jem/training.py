"""Training on images: arms, the trainer, and how a trained network is judged while it learns.

A step is that of Grathwohl et al. (2020, algorithm 1): cross-entropy on labelled images, chains from the replay buffer,
and the difference of log densities of chains and of the unlabelled stream.
"""

import re
import time
from pathlib import Path
from typing import Any, Literal

import msgspec
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from papers.jem import settings as presets
from papers.jem.buffer import ReplayBuffer, uniform_start
from papers.jem.calibration import accuracy, nll_nats, smoothed_cross_entropy
from papers.jem.data import CLASSES, Data, labelled_batch, unlabelled_batch
from papers.jem.divergence import Recovery
from papers.jem.energy import Losses, class_conditional_loss
from papers.jem.evaluation import logits_of
from papers.jem.model import Activation, SmallConvNet, WideResNet
from papers.jem.settings import PARAMS, NonNegative, Positive, Rate, Settings
from papers.jem.sgld import Langevin, chain_generator
from papers.jem.step import jem_step, joint_pass, moved_chains
from shared import settings
from shared.errors import UserError
from shared.settings import Settings as Base
from shared.settings import read_yaml
from shared.training.device import autocast
from shared.training.flat import flatten
from shared.training.loop import Stateful

#: The linear schedule: share of the steps after which the learning rate falls to nothing; and steps of its rise.
FLAT_SHARE, WARMUP_STEPS = 0.4, 300
#: The paper's schedule: its rise, and 0.3 of the rate after each third (epochs 50 and 100 of 150).
PAPER_WARMUP_STEPS, PAPER_DECAY, PAPER_SHARES = 1000, 0.3, (1 / 3, 2 / 3)
#: Arms that are only compared with each other have this share of the steps.
SHORT_SHARE = 3
#: Validation images, and how often they are looked at along a run.
VALIDATION_LOOKS = 25
#: A loss past this is a divergence: healthy ones are below 10.
LOSS_BOUND = 100.0
PRECISION = "bfloat16"


class Arm(Base):
    """What one arm does; what it leaves out is the preset's, and the paper's method."""

    generative_weight: NonNegative = 1.0  # of -log p(x)
    factorisation: Literal["joint", "conditional"] = "joint"  # log p(y|x) + log p(x), or log p(x|y)
    unlabelled: bool = True  # p(x) of all images, not of the labelled ones alone
    label_smoothing: NonNegative = 0.0
    energy_l2: NonNegative = 0.0
    gradient_clamp: Rate | None = None  # of the chains' scores
    persistent: bool = True  # chains go on from the buffer; else every one starts from noise
    activation: Activation | None = None  # None: the small net has Swish, wide residual nets LeakyReLU
    chain_steps: Positive | None = None
    data_noise: NonNegative | None = None
    learning_rate: Rate | None = None
    short: bool = False  # a third of the steps


def read_arm(preset: str, name: str, path: Path = PARAMS) -> tuple[Arm, Settings]:
    """An arm of params.yaml, and the preset's settings as this arm has them.

    Raises:
        UserError: no such arm or preset, or a bad value in it.
    """
    document = read_yaml(path)
    if name not in document["arms"]:
        raise UserError(f"{path}: no arm named {name!r}; there are: {', '.join(document['arms'])}")
    arm = settings.convert(document["arms"][name], Arm, f"{path}: arms: {name}")
    own = {key: getattr(arm, key) for key in ("chain_steps", "data_noise", "learning_rate")}
    changes: dict[str, Any] = {key: value for key, value in own.items() if value is not None}
    if arm.short:
        changes["steps"] = short_steps(presets.load(preset, path))
    return arm, presets.load(preset, path, **changes)


def network(s: Settings, arm: Arm) -> nn.Module:
    """The network of the settings with new weights."""
    colours = 1 if s.images == "fashion_mnist" else 3
    if s.network == "small":
        return SmallConvNet(CLASSES, colours, arm.activation or "swish")
    depth, width = map(int, re.findall(r"\d+", s.network))
    return WideResNet(depth, width, CLASSES, colours, arm.activation or "leaky_relu")


def short_steps(s: Settings) -> int:
    """Steps of the arms that are only compared with each other."""
    return max(2, s.steps // SHORT_SHARE)


def learning_rate(step: int, s: Settings) -> float:
    """A function of the step alone: a linear rise, then flat, then a fall to 0, or the paper's two steps down."""
    if s.rate_schedule == "stepped":
        falls = sum(step >= share * s.steps for share in PAPER_SHARES)
        return s.learning_rate * min(1.0, step / PAPER_WARMUP_STEPS) * PAPER_DECAY**falls
    warm = min(1.0, (step + 1) / min(WARMUP_STEPS, max(1, s.steps // 8)))
    left = min(1.0, (s.steps - step) / (s.steps * (1 - FLAT_SHARE)))
    return s.learning_rate * warm * left


class Best:
    """The averaged weights with the least validation NLL so far, and what every look saw; part of a run's state."""

    def __init__(self) -> None:
        self.nll_nats, self.step = float("inf"), 0
        self.weights: Tensor | None = None
        self.rows: list[dict[str, float]] = []
        self.seconds = 0.0  # that the looks took

    def offer(self, weights: Tensor, row: dict[str, float]) -> None:
        """Record a look at the validation images; keep a copy of the weights if it is the best."""
        self.rows.append(row)
        if row["nll_nats"] < self.nll_nats:
            self.nll_nats, self.step, self.weights = row["nll_nats"], int(row["step"]), weights.detach().clone()

    def state_dict(self) -> dict[str, Any]:
        """What is saved."""
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """What was saved."""
        self.nll_nats, self.step, self.seconds = state["nll_nats"], state["step"], state["seconds"]
        self.weights, self.rows = state["weights"], list(state["rows"])


class Average:
    """An exponential moving average of a vector of weights, without the bias of its first value; decay 0 is none."""

    def __init__(self, vector: Tensor, decay: float) -> None:
        self.decay, self.count = decay, 0
        self.vector = vector.detach().clone()

    def update(self, vector: Tensor) -> None:
        """Take in the weights after a step."""
        self.count += 1
        share = (1 - self.decay) / (1 - self.decay**self.count)
        self.vector.lerp_(vector.detach(), share)

    def state_dict(self) -> dict[str, Any]:
        """What is saved."""
        return {"count": self.count, "vector": self.vector}

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """What was saved."""
        self.count = state["count"]
        self.vector.copy_(state["vector"])


class Trainer:
    """One arm and seed: network, optimiser, buffer, average, recovery, and `step(k)` for the shared loop.

    Arms of one seed have the same first weights and see the same images in the same order.
    """

    def __init__(self, arm: Arm, s: Settings, data: Data, seed: int, device: torch.device) -> None:
        self.arm, self.settings, self.seed, self.device = arm, s, seed, device
        self.data = data.to(device)
        torch.manual_seed(seed)
        self.model = network(s, arm).to(device)
        self.vector = flatten(self.model)
        self.optimizer = torch.optim.Adam([self.vector], s.learning_rate, fused=True)
        self.average = Average(self.vector, s.average_decay)
        self.langevin = Langevin(s.chain_steps, gradient_clamp=arm.gradient_clamp)
        shape = tuple(data.train.shape[1:])
        classes = CLASSES if arm.factorisation == "conditional" else 1
        reinit = 0.05 if arm.persistent else 1.0
        filling = chain_generator(seed, 2**30, device)
        self.buffer = ReplayBuffer(
            s.buffer, uniform_start(shape), reinit=reinit, classes=classes, device=device, generator=filling
        )
        parts: dict[str, Stateful] = {"model": self.model, "optimizer": self.optimizer, "average": self.average}
        self.best = Best()
        parts |= {"buffer": self.buffer, "best": self.best}
        self.recovery = Recovery(parts, seed=seed, bound=LOSS_BOUND)

    def state(self) -> dict[str, Stateful]:
        """All that changes."""
        parts: dict[str, Stateful] = {"model": self.model, "optimizer": self.optimizer, "average": self.average}
        return {**parts, "buffer": self.buffer, "recovery": self.recovery, "best": self.best}

    def losses(self, k: int) -> Losses:
        """The losses of step `k`; chains write back to the buffer."""
        s, arm = self.settings, self.arm
        x, y = labelled_batch(self.data, s.batch, self.seed, k)
        x = x + s.data_noise * torch.randn_like(x)
        if arm.generative_weight == 0:
            with autocast(self.device, PRECISION):
                logits = self.model(x)
            loss = smoothed_cross_entropy(logits, y, arm.label_smoothing)
            zero = torch.zeros((), device=self.device)
            return Losses(loss, F.cross_entropy(logits.detach(), y), zero, zero, zero)
        generator = chain_generator(self.recovery.sampler_seed, k, self.device)
        if arm.factorisation == "conditional":
            return self._conditional(x, y, generator)
        unlabelled = None
        if arm.unlabelled:
            unlabelled = unlabelled_batch(self.data, s.batch, self.seed, k)
            unlabelled = unlabelled + s.data_noise * torch.randn_like(unlabelled)
        return jem_step(
            self.model,
            self.buffer,
            (x, y),
            unlabelled,
            self.langevin,
            generator=generator,
            precision=PRECISION,
            energy_l2=arm.energy_l2,
            generative_weight=arm.generative_weight,
        )

    def _conditional(self, x: Tensor, y: Tensor, generator: torch.Generator) -> Losses:
        """-log p(x|y): chains on the logit of a class drawn uniformly, from the slots of that class."""
        classes = torch.randint(CLASSES, y.shape, generator=generator, device=self.device)
        samples = moved_chains(
            self.model, self.buffer, len(y), self.langevin, labels=classes, generator=generator, precision=PRECISION
        )
        data, drawn = joint_pass(self.model, [x, samples], PRECISION)
        return class_conditional_loss(data, y, drawn, classes, energy_l2=self.arm.energy_l2)

    def step(self, k: int) -> dict[str, Tensor | float]:
        """One optimiser step; gives the row of the record."""
        s = self.settings
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(k, s) * self.recovery.rate_factor
        self.model.train()
        losses = self.losses(k)
        self.optimizer.zero_grad(set_to_none=False)
        losses.total.backward()
        assert self.vector.grad is not None
        norm = self.vector.grad.norm()
        self.optimizer.step()
        self.average.update(self.vector)
        if (k + 1) % max(1, s.steps // VALIDATION_LOOKS) == 0 or k + 1 == s.steps:
            began = time.perf_counter()
            row = {"step": float(k + 1), **judged(self.model, self.vector, self.average.vector, self.data)}
            self.best.offer(self.average.vector, row)
            self.best.seconds += time.perf_counter() - began
        return {
            "loss": losses.total.detach(),
            "cross_entropy_nats": losses.cross_entropy_nats.detach(),
            "contrast": losses.contrast.detach(),
            "log_density_data": losses.log_density_data,
            "log_density_samples": losses.log_density_samples,
            "gradient_norm": norm,
        }


@torch.no_grad()
def judged(model: nn.Module, vector: Tensor, weights: Tensor, data: Data) -> dict[str, float]:
    """NLL in nats and accuracy in percent on validation images, of the network with other `weights`, put back after."""
    own = vector.detach().clone()
    vector.data.copy_(weights)
    logits, labels = logits_of(model, data.validation), data.validation_labels
    vector.data.copy_(own)
    return {"nll_nats": nll_nats(logits, labels), "accuracy_percent": 100 * accuracy(logits, labels)}


def to_plain(s: Settings, arm: Arm) -> dict[str, Any]:
    """Settings and arm as plain values, for the name of a run's state."""
    return {"settings": msgspec.to_builtins(s), "arm": msgspec.to_builtins(arm)}
