"""Speed of a JEM step against a literal one of equal mathematics, and what chains cost: `python -m benchmarks.jem`.

Ours is the step of the training stage: labelled images, unlabelled images and samples in one pass, chains in bfloat16
and channels-last with constant parameters, the buffer on the device, Adam on one vector. The literal step is what one
writes first from the algorithm of the paper: float32 and the default layout, a graph kept at every move of a chain and
parameters that are not constants, a buffer that is copied from and to the CPU, three passes one after the other, Adam
parameter by parameter. Images are random numbers. All take turns, and a turn of each takes about as long, so that they
see the same machine; a ratio is the median of the ratios of the turns.
"""

import argparse
import copy
import itertools
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.timing import entry, in_turns
from papers.jem import settings as presets
from papers.jem.buffer import ReplayBuffer, uniform_start
from papers.jem.energy import log_conditional
from papers.jem.model import SmallConvNet, WideResNet
from papers.jem.settings import Settings
from papers.jem.sgld import Langevin, run_chains
from papers.jem.step import jem_step
from shared import errors, provenance
from shared.files import write_json
from shared.paths import reports, runs
from shared.results import Metrics, put, write_metrics
from shared.training.device import autocast
from shared.training.flat import flatten
from shared.training.memory import keep_freed_memory

CLASSES, SHAPE, REINIT = 10, (1, 28, 28), 0.05
#: Steps of chains in the comparison with the literal step: the preset's are the first, the paper's the second.
MORE_STEPS = 20
#: Depth and width of a small network of the paper's family; its turns take seconds, so there are fewer.
WIDE, WIDE_SHARE = (10, 2), 5
#: Of turns, for the spread of a ratio.
GROUPS = 5
#: Steps of chains in the comparison with a plain classifier.
STEPS = (1, 5, 10, 20, 40)

Batches = tuple[Tensor, Tensor, Tensor]  # labelled images, their labels, unlabelled images


def batches(count: int) -> Batches:
    """Random images (count, 1, 28, 28) in [-1, 1] and labels."""
    x, data = (2 * torch.rand(count, *SHAPE) - 1 for _ in range(2))
    return x, torch.randint(CLASSES, (count,)), data


Model = SmallConvNet | WideResNet


class FastStep:
    """The step of the training stage, and the step of a plain classifier in the same manner."""

    def __init__(
        self, model: Model, slots: int, *, precision: str = "bfloat16", reinit: float = REINIT, seed: int = 0
    ) -> None:
        self.model, self.precision = model, precision
        self.vector = flatten(model)
        self.optimizer = torch.optim.Adam([self.vector], 1e-4, fused=True)
        self.generator = torch.Generator().manual_seed(seed)
        self.buffer = ReplayBuffer(slots, uniform_start(SHAPE), reinit=reinit, generator=self.generator)

    def loss(self, images: Batches, langevin: Langevin) -> Tensor:
        """The loss of a step, whose chains are moved by it."""
        x, y, data = images
        return jem_step(
            self.model, self.buffer, (x, y), data, langevin, generator=self.generator, precision=self.precision
        ).total

    def cross_entropy(self, images: Batches) -> Tensor:
        """The loss of a plain classifier."""
        x, y, _ = images
        with autocast(x.device, self.precision):
            logits = self.model(x)
        return F.nll_loss(log_conditional(logits), y)

    def update(self, loss: Tensor) -> None:
        """One step of Adam."""
        self.optimizer.zero_grad(set_to_none=False)
        loss.backward()
        self.optimizer.step()


def literal(model: Model) -> nn.Module:
    """The same network of plain layers in the default layout, with copies of the weights."""
    if isinstance(model, WideResNet):
        pooled: list[nn.Module] = [nn.LeakyReLU(0.2), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        layers = [copy.deepcopy(model.stem), *copy.deepcopy(model.blocks), *pooled]
    else:
        layers = []
        for own in model.convolutions:
            assert isinstance(own, nn.Conv2d)
            size, stride = (own.kernel_size[0], own.kernel_size[1]), (own.stride[0], own.stride[1])
            layers += [nn.Conv2d(own.in_channels, own.out_channels, size, stride, padding=1), nn.SiLU()]
        layers.append(nn.Flatten())
    whole = nn.Sequential(*layers, nn.Linear(model.head.in_features, CLASSES))
    for p, own_p in zip(whole.parameters(), model.parameters(), strict=True):
        p.data = own_p.data.clone(memory_format=torch.contiguous_format)
    return whole


class LiteralStep:
    """The algorithm as it reads, from the weights of a network."""

    def __init__(self, model: Model, slots: int, *, reinit: float = REINIT, seed: int = 0) -> None:
        self.model = literal(model)
        self.optimizer = torch.optim.Adam(self.model.parameters(), 1e-4, foreach=False)
        self.generator = torch.Generator().manual_seed(seed)
        self.reinit = reinit
        self.device = next(self.model.parameters()).device
        self.buffer = 2 * torch.rand(slots, *SHAPE, generator=self.generator) - 1  # on the CPU

    def chains(self, x: Tensor, langevin: Langevin) -> Tensor:
        """Final states of chains from x (B, 1, 28, 28)."""
        self.model.eval()
        x = x.clone().requires_grad_()
        for _ in range(langevin.steps):
            density = torch.logsumexp(self.model(x), dim=1).sum()
            (slope,) = torch.autograd.grad(density, x, retain_graph=True)
            noise = torch.randn(x.shape, generator=self.generator).to(self.device)
            x.data = x.data + langevin.step_size * slope + langevin.sigma * noise
        self.model.train()
        return x.detach()

    def loss(self, images: Batches, langevin: Langevin) -> Tensor:
        """The loss of a step, whose chains are moved by it."""
        x, y, data = images
        index = torch.randint(len(self.buffer), (len(data),), generator=self.generator)
        fresh = (torch.rand(len(data), generator=self.generator) < self.reinit).float()[:, None, None, None]
        noise = 2 * torch.rand(len(data), *SHAPE, generator=self.generator) - 1
        start = (fresh * noise + (1 - fresh) * self.buffer[index]).to(self.device)
        samples = self.chains(start, langevin)
        self.buffer[index] = samples.cpu()
        cross_entropy = F.cross_entropy(self.model(x), y)
        of_data = torch.logsumexp(self.model(data), dim=1).mean()
        of_samples = torch.logsumexp(self.model(samples), dim=1).mean()
        return cross_entropy + of_samples - of_data

    def update(self, loss: Tensor) -> None:
        """One step of Adam."""
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()


def wide() -> WideResNet:
    """A small network of the paper's family, for grey images."""
    return WideResNet(*WIDE, CLASSES, SHAPE[0])


def assert_equal_mathematics(settings: Settings) -> None:
    """AssertionError unless both have one loss, one gradient and the same samples, in float32.

    Either all chains start from noise, or none does: then both draw the same random numbers in the same order.
    """
    images = batches(settings.batch)
    random, still = (1.0, Langevin(3)), (0.0, Langevin(3, noise=0.0))
    models: list[Model] = [SmallConvNet(CLASSES), wide()]
    for model, (reinit, langevin) in itertools.product(models, (random, still)):
        ours = FastStep(model, settings.buffer, precision="float32", reinit=reinit)
        literal = LiteralStep(model, settings.buffer, reinit=reinit)
        pair: list[FastStep | LiteralStep] = [ours, literal]
        losses = [step.loss(images, langevin) for step in pair]
        torch.testing.assert_close(*losses, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(ours.buffer.states, literal.buffer, rtol=1e-5, atol=1e-5)
        gradients = [
            torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(step.model.parameters()))])
            for loss, step in zip(losses, pair, strict=True)
        ]
        torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-5)


class Timed(NamedTuple):
    """A record, and the ratios of the turns whose median is in it."""

    entry: dict[str, object]
    ratios: list[float]

    def by_group(self) -> list[float]:
        """Medians of up to GROUPS runs of turns, one after another: how far the ratio varies on this machine."""
        count = min(GROUPS, len(self.ratios))
        ends = [len(self.ratios) * i // count for i in range(count + 1)]
        return [statistics.median(self.ratios[start:end]) for start, end in itertools.pairwise(ends)]


def timed(
    name: str, ours: float, baseline: float, unit: str, over: tuple[list[float], list[float]], conditions: str
) -> Timed:
    """The record whose ratio is the median of those of the turns, first over second of `over`."""
    ratios = [a / b for a, b in zip(*over, strict=True)]
    return Timed(entry(name, ours, baseline, unit, statistics.median(ratios), conditions), ratios)


def iterations_entry(
    name: str, ours: FastStep, literal: LiteralStep, settings: Settings, steps: int, rounds: int, network: str
) -> Timed:
    """Training iterations a second with `steps` steps of chains."""
    images, langevin = batches(settings.batch), Langevin(steps)
    works: list[Callable[[], object]] = [
        lambda: ours.update(ours.loss(images, langevin)),
        lambda: literal.update(literal.loss(images, langevin)),
    ]
    fast, slow = in_turns(works, rounds)
    rate, other = (1 / statistics.median(times) for times in (fast, slow))
    shapes = f"{settings.batch} labelled, {settings.batch} unlabelled images and {settings.batch} samples of 28 x 28"
    how = f"higher is better; CPU, 1 thread; {network}; {steps} steps of chains; {shapes}; {rounds} rounds"
    return timed(name, rate, other, "iterations/s", (slow, fast), how)


def step_entries(settings: Settings, rounds: int) -> list[Timed]:
    """Training iterations a second, and milliseconds of one move of the chains, against the literal step."""
    torch.manual_seed(0)
    ours = FastStep(SmallConvNet(CLASSES), settings.buffer)
    literal = LiteralStep(ours.model, settings.buffer)
    residual = FastStep(wide(), settings.buffer)
    other = LiteralStep(residual.model, settings.buffer)
    name, eta, few = "train_iterations_per_s", settings.chain_steps, max(1, rounds // WIDE_SHARE)
    small, wider = "the small network of the preset", "WRN-{}-{}, of the paper's family".format(*WIDE)
    return [
        iterations_entry(name, ours, literal, settings, eta, rounds, small),
        iterations_entry(f"{name}_eta{MORE_STEPS}", ours, literal, settings, MORE_STEPS, rounds, small),
        iterations_entry(f"{name}_wide_residual", residual, other, settings, eta, few, wider),
        move_entry(ours, literal, settings, rounds),
    ]


def move_entry(ours: FastStep, literal: LiteralStep, settings: Settings, rounds: int) -> Timed:
    """Milliseconds of one move of the chains."""
    start, langevin = batches(settings.batch)[0], Langevin(settings.chain_steps)
    works: list[Callable[[], object]] = [
        lambda: run_chains(ours.model, start, langevin, generator=ours.generator, precision=ours.precision),
        lambda: literal.chains(start, langevin),
    ]
    fast, slow = in_turns(works, rounds)
    move, other = (1000 * statistics.median(times) / langevin.steps for times in (fast, slow))
    how = f"lower is better; one of {langevin.steps} moves of {settings.batch} chains; ratio: baseline over ours"
    how += f"; CPU, 1 thread; {rounds} rounds"
    return timed("chain_step_ms", move, other, "ms", (slow, fast), how)


def cost_entries(settings: Settings, rounds: int) -> list[Timed]:
    """What an iteration with chains costs, in iterations of a plain classifier.

    A pass forward is one unit, one backward to the images or to the weights as well: a classifier takes 3 units, JEM
    2 eta + 9 with three batches.
    """
    torch.manual_seed(0)
    ours = FastStep(SmallConvNet(CLASSES), settings.buffer)
    images = batches(settings.batch)

    def iteration(steps: int) -> Callable[[], object]:
        return lambda: ours.update(ours.loss(images, Langevin(steps)))

    works: list[Callable[[], object]] = [lambda: ours.update(ours.cross_entropy(images)), *map(iteration, STEPS)]
    classifier, *joint = in_turns(works, rounds)
    entries = []
    for steps, times in zip(STEPS, joint, strict=True):
        how = (
            f"lower is better; ours: an iteration with {steps} steps of chains, baseline: one of a classifier; "
            f"counting passes gives {(2 * steps + 9) / 3:.1f}; CPU, 1 thread; batch {settings.batch}; {rounds} rounds"
        )
        whole, plain = (1000 * statistics.median(column) for column in (times, classifier))
        entries.append(timed(f"cost_ratio_eta{steps}", whole, plain, "ms", (times, classifier), how))
    return entries


def main() -> None:
    """Measure and write `reports/jem/benchmark.json`, and the ratios of groups of turns as metrics."""
    parser = argparse.ArgumentParser(description="Speed of a JEM step, and what its chains cost.")
    parser.add_argument("--preset", default="laptop")
    preset = parser.parse_args().preset
    settings = presets.load(preset)
    origin = provenance.begin("benchmark", preset, None, Path(__file__))
    rounds = 2 if preset == "smoke" else 30
    torch.set_num_threads(1)
    keep_freed_memory()  # as in the training stages
    assert_equal_mathematics(settings)
    measured = [*step_entries(settings, rounds), *cost_entries(settings, rounds)]
    write_json(reports("jem") / "benchmark.json", [each.entry for each in measured])
    metrics: Metrics = {}
    for row, ratios in ((each.entry, each.by_group()) for each in measured):
        print(f"{row['name']}: {row['ours']} against {row['baseline']} {row['unit']}, ratio {row['ratio']}")
        for group, ratio in enumerate(ratios):
            put(metrics, "benchmark_ratio", str(row["name"]), f"seed{group}", ratio)
    write_metrics(runs("jem", preset) / "benchmark" / "metrics.json", metrics)
    origin.finish(runs("jem", preset) / "provenance" / "benchmark.json")


if __name__ == "__main__":
    errors.run(main)
