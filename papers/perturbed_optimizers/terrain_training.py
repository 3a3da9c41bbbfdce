"""One network that reads costs off terrain maps, trained by one of the losses: settings, trainer, measurement."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor

from papers.perturbed_optimizers import settings as presets
from papers.perturbed_optimizers.model import CostNetwork, ResNetTerrain, SmallTerrainCNN
from papers.perturbed_optimizers.path_losses import SMALLEST_COST, Name, PathSolver, Target, path_loss
from papers.perturbed_optimizers.perturbed import Noise, Perturbation
from papers.perturbed_optimizers.settings import PARAMS, Rate, Settings
from papers.perturbed_optimizers.terrain import Maps
from shared import settings
from shared.data.batches import batch_indices
from shared.errors import UserError
from shared.settings import Settings as Base
from shared.settings import read_yaml
from shared.training.checkpoint import StateFolder
from shared.training.device import autocast
from shared.training.loop import Record, fit, gradient_step
from shared.training.schedules import cosine_with_warmup

#: Smallest predicted cost: of the order of the least true cost in units of the mean one, and three temperatures of the
#: preset, which leaves it to one draw in a thousand to make a cost negative. The solver clamps those.
FLOOR = 0.1
WARMUP_STEPS = 20


class Arm(Base):
    """What one arm does; what it leaves out is the preset's."""

    loss: Name
    epsilon: Rate | None = None
    samples: presets.Positive | None = None
    noise: Noise = "gaussian"
    multiplicative: bool = False
    strength: Rate = 1.0  # lambda of black-box differentiation
    normalised: bool = False  # the costs of a map are divided by their mean before the loss
    network: str | None = None
    learning_rate: Rate | None = None
    short: bool = False  # with the changes of `ablation`


def read_arm(preset: str, name: str, path: Path = PARAMS) -> tuple[Arm, Settings]:
    """An arm of params.yaml, and the preset's settings as this arm has them.

    Raises:
        UserError: no such arm or preset, or a bad value in it.
    """
    document = read_yaml(path)
    if name not in document["arms"]:
        raise UserError(f"{path}: no arm named {name!r}; there are: {', '.join(document['arms'])}")
    arm = settings.convert(document["arms"][name], Arm, f"{path}: arms: {name}")
    changes: dict[str, Any] = dict(document["ablation"]) if arm.short else {}
    changes["maps"] = min(changes.get("maps", 10**9), presets.load(preset, path).maps)
    own: dict[str, Any] = {
        "terrain_epsilon": arm.epsilon,
        "terrain_samples": arm.samples,
        "terrain_network": arm.network,
    }
    own["terrain_learning_rate"] = arm.learning_rate
    changes |= {key: value for key, value in own.items() if value is not None}
    return arm, presets.load(preset, path, **changes)


def network(s: Settings, maps: Maps) -> CostNetwork:
    """The network of the settings with new weights, its inputs scaled by the training maps."""
    pixels = maps.pixels[:500].double()
    mean, deviation = pixels.mean((0, 2, 3)).float(), pixels.std((0, 2, 3)).float()
    inner = ResNetTerrain() if s.terrain_network == "resnet" else SmallTerrainCNN()
    return CostNetwork(inner, mean, deviation, FLOOR)


@dataclass
class Snapshots:
    """The weights after every epoch, part of a run's state."""

    weights: list[dict[str, Tensor]] = field(default_factory=list)

    def take(self, model: CostNetwork) -> None:
        """Keep a copy of parameters and buffers."""
        self.weights.append({name: value.detach().cpu().clone() for name, value in model.state_dict().items()})

    def state_dict(self) -> list[dict[str, Tensor]]:
        """What is saved."""
        return self.weights

    def load_state_dict(self, weights: list[dict[str, Tensor]], /) -> None:
        """What was saved."""
        self.weights = weights


class Trainer:
    """One arm, one seed. All arms of a seed see the same maps in the same order, from the same first weights."""

    def __init__(self, arm: Arm, s: Settings, maps: Maps, seed: int, device: torch.device) -> None:
        self.settings, self.seed, self.device = s, seed, device
        self.pixels, self.paths, self.costs = (x.to(device) for x in (maps.pixels, maps.paths, maps.costs))
        torch.manual_seed(seed)
        self.model = network(s, maps).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.solver = PathSolver()
        p = Perturbation(
            s.terrain_epsilon,
            s.terrain_samples,
            arm.noise,
            "leave_one_out" if s.terrain_samples > 1 else "none",
            multiplicative=arm.multiplicative,
        )
        self.normalised = arm.normalised
        self.loss = path_loss(arm.loss, self.solver, p, arm.strength)
        self.optimizer = torch.optim.Adam(self.model.parameters(), s.terrain_learning_rate, fused=True)
        self.snapshots = Snapshots()
        self.steps_per_epoch = len(maps.pixels) // s.terrain_batch
        self.steps = self.steps_per_epoch * s.terrain_epochs

    def step(self, k: int) -> dict[str, Tensor | float]:
        """One optimiser step; gives the row of the record."""
        s = self.settings
        rate = cosine_with_warmup(k, self.steps, s.terrain_learning_rate, 0.0, min(WARMUP_STEPS, self.steps // 4))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.model.train()
        index = batch_indices(len(self.pixels), s.terrain_batch, self.seed, k).to(self.device)
        before = self.solver.solved
        with autocast(self.device, "bfloat16"):
            costs = self.model(self.pixels[index])
        if self.normalised:
            costs = costs / costs.mean((1, 2), keepdim=True)
        loss = self.loss(costs, Target(self.paths[index], self.costs[index]))
        norm = gradient_step(loss, self.optimizer)["gradient_norm"]
        if (k + 1) % self.steps_per_epoch == 0:
            self.snapshots.take(self.model)
        solved = float(self.solver.solved - before)
        return {
            "loss": loss.detach(),
            "gradient_norm": norm,
            "solver_calls": solved,
            "mean_cost": costs.detach().mean(),
        }


def train(trainer: Trainer, folder: StateFolder, label: str) -> Record:
    """Run or resume the training; a row of the record is an epoch."""
    parts = {"model": trainer.model, "optimizer": trainer.optimizer, "snapshots": trainer.snapshots}
    return fit(
        trainer.step,
        steps=trainer.steps,
        seed=trainer.seed,
        state=parts,
        folder=folder,
        record_every=trainer.steps_per_epoch,
        check_every=10,
        label=label,
    )


@torch.inference_mode()
def predicted_costs(model: CostNetwork, pixels: Tensor) -> Tensor:
    """Costs (N, 12, 12) on the CPU, of maps uint8 (N, 3, 96, 96), in evaluation mode."""
    model.eval()
    device = model.floor.device
    with autocast(device, "bfloat16"):
        return torch.cat([model(part.to(device)).cpu() for part in pixels.split(200)]).clamp_min(SMALLEST_COST)


def to_plain(s: Settings, arm: Arm) -> dict[str, Any]:
    """Settings and arm as plain values, for the name of a run's state."""
    return {"settings": msgspec.to_builtins(s), "arm": msgspec.to_builtins(arm)}
