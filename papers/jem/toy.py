"""Two-dimensional densities on which everything that JEM estimates can be computed exactly.

The data are finite mixtures of Gaussians, so their densities are known; the model's log Z is an integral over a grid.
So the gradient that chains estimate (Grathwohl et al., 2020, equation 2), the likelihood and KL(data || model) are all
exact, up to a quadrature whose error the tests bound.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from papers.jem.buffer import ReplayBuffer, uniform_start
from papers.jem.energy import Network, contrastive_loss, joint_loss, log_marginal
from papers.jem.sgld import Langevin, chain_generator, largest_curvature, run_chains

#: Chains start in, and grids cover, the square of this half-width; the laws below live within 3 of the origin.
START_HALF_WIDTH = 3.0
GRID_HALF_WIDTH = 6.0


@dataclass(frozen=True)
class Mixture:
    """Isotropic Gaussians of equal weight and of one standard deviation, each with a class.

    Attributes:
        centres: (M, 2).
        labels: int64 (M,), the class of each component.
        deviation: standard deviation of the components.
    """

    centres: Tensor
    labels: Tensor
    deviation: float

    @property
    def classes(self) -> int:
        """K."""
        return int(self.labels.max()) + 1

    def draw(self, count: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Points (count, 2) and their labels (count,)."""
        component = torch.randint(len(self.centres), (count,), generator=generator)
        noise = torch.randn(count, 2, dtype=self.centres.dtype, generator=generator)
        return self.centres[component] + self.deviation * noise, self.labels[component]

    def log_joint(self, x: Tensor) -> Tensor:
        """log p(x, y) (N, K) in nats, normalised: the logits of a perfect model. -inf nowhere."""
        distance = (x[:, None] - self.centres.to(x)).square().sum(-1)
        constant = math.log(len(self.centres)) + math.log(2 * math.pi * self.deviation**2)
        terms = -0.5 * distance / self.deviation**2 - constant
        members = [terms[:, self.labels == y].logsumexp(1) for y in range(self.classes)]
        return torch.stack(members, dim=1)

    def log_density(self, x: Tensor) -> Tensor:
        """log p(x) (N,) in nats."""
        return self.log_joint(x).logsumexp(1)


def eight_gaussians(classes: int = 4) -> Mixture:
    """Eight Gaussians of deviation 0.25 on a circle of radius 2; neighbours belong to different classes.

    Raises:
        ValueError: a number of classes that eight components cannot share.
    """
    if classes < 1 or 8 % classes:
        raise ValueError(f"eight Gaussians cannot be shared by {classes} classes")
    angle = torch.arange(8) * (math.pi / 4)
    return Mixture(2 * torch.stack([angle.cos(), angle.sin()], 1), torch.arange(8) % classes, 0.25)


def moons(deviation: float = 0.15) -> Mixture:
    """Two interleaved half circles of radius 1.5, one a class, smeared by a Gaussian."""
    angle = (torch.arange(40) + 0.5) * (math.pi / 40)
    upper = 1.5 * torch.stack([angle.cos() - 0.5, angle.sin() - 0.25], 1)
    return Mixture(torch.cat([upper, -upper]), torch.arange(2).repeat_interleave(40), deviation)


def rings(classes: int = 2, deviation: float = 0.12) -> Mixture:
    """Concentric circles, one a class, of radii up to 2.4, all with the same probability."""
    angle = torch.arange(120) * (math.pi / 60)
    circle = torch.stack([angle.cos(), angle.sin()], 1)
    radii = 2.4 * torch.arange(1, classes + 1) / classes
    return Mixture(
        (radii[:, None, None] * circle).flatten(0, 1), torch.arange(classes).repeat_interleave(120), deviation
    )


def pinwheel(classes: int = 5, deviation: float = 0.12) -> Mixture:
    """Arms of a spiral from radius 0.4 to 2.4, one a class."""
    radius = torch.linspace(0.4, 2.4, 30)
    angle = 0.6 * radius + torch.arange(classes)[:, None] * (2 * math.pi / classes)
    centres = torch.stack([radius * angle.cos(), radius * angle.sin()], -1)
    return Mixture(centres.flatten(0, 1), torch.arange(classes).repeat_interleave(30), deviation)


#: The laws of the report, each with its usual number of classes.
LAWS: dict[str, Callable[[], Mixture]] = {
    "eight_gaussians": eight_gaussians,
    "moons": moons,
    "rings": rings,
    "pinwheel": pinwheel,
}


class SwishMLP(nn.Module):
    """Points (B, 2) -> logits (B, K): two hidden layers with Swish, minus ||x||^2 / (2 s^2) in every logit.

    The last term does not change p(y|x). Without it the logits grow linearly at infinity, and Z need not exist.

    Args:
        classes: K.
        width: of the hidden layers.
        confinement: s.
    """

    def __init__(self, classes: int, width: int = 128, confinement: float = 3.0) -> None:
        super().__init__()
        self.confinement = confinement
        self.layers = nn.Sequential(
            nn.Linear(2, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, classes)
        )

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.layers(x)
        return logits - x.square().sum(1, keepdim=True) / (2 * self.confinement**2)


class Grid(NamedTuple):
    """Centres of equal cells that cover a square."""

    points: Tensor  # (N, 2)
    log_area: float  # of a cell


def square_grid(side: int = 201, half_width: float = GRID_HALF_WIDTH, device: torch.device | str = "cpu") -> Grid:
    """`side`^2 cells on [-half_width, half_width]^2, for the midpoint rule: very exact where a density fades inside."""
    width = 2 * half_width / side
    axis = (torch.arange(side, device=device) + 0.5) * width - half_width
    return Grid(torch.cartesian_prod(axis, axis), 2 * math.log(width))


def log_partition(network: Network, grid: Grid) -> Tensor:
    """log Z = log integral of exp LSE f(x) dx over the grid's square, a scalar in nats with a graph."""
    return log_marginal(network(grid.points)).logsumexp(0) + grid.log_area


def exact_nll(network: Network, x: Tensor, grid: Grid) -> Tensor:
    """Mean -log p(x) of points (B, 2) in nats, normalised; its graph gives the exact gradient of equation 2."""
    return log_partition(network, grid) - log_marginal(network(x)).mean()


@torch.no_grad()
def kl_data_model(law: Mixture, network: Network, grid: Grid) -> float:
    """KL(data || model) in nats, the integral of p_data (log p_data - log p_model) over the grid's square."""
    log_data = law.log_density(grid.points)
    log_model = log_marginal(network(grid.points))
    log_model = log_model - log_model.logsumexp(0) - grid.log_area
    weight = (log_data + grid.log_area).exp()
    return float((weight * (log_data - log_model)).double().sum())


def flat_gradient(loss: Tensor, model: nn.Module) -> Tensor:
    """The gradient (P,) of a scalar in all parameters; their own .grad is left alone."""
    gradients = torch.autograd.grad(loss, list(model.parameters()), materialize_grads=True)
    return torch.cat([gradient.flatten() for gradient in gradients])


@dataclass(frozen=True)
class Angle:
    """How far an estimated gradient of -log p(x) is from the exact one, for the same data."""

    cosine: float  # between the two
    relative_error: float  # ||estimate - exact|| / ||exact||
    contrastive_loss: float
    exact_nll_nats: float


def gradient_angle(model: nn.Module, data: Tensor, samples: Tensor, grid: Grid) -> Angle:
    """Compare the gradient of `contrastive_loss` with that of `exact_nll` at data (B, 2) and samples (M, 2)."""
    estimate = contrastive_loss(log_marginal(model(data)), log_marginal(model(samples)))
    exact = exact_nll(model, data, grid)
    g, h = flat_gradient(estimate, model), flat_gradient(exact, model)
    cosine = F.cosine_similarity(g, h, dim=0)
    return Angle(float(cosine), float((g - h).norm() / h.norm()), estimate.item(), exact.item())


class Toy(NamedTuple):
    """A trained toy: the model, the buffer of its training, and how it went."""

    model: SwishMLP
    buffer: ReplayBuffer
    rows: list[dict[str, float]]  # step, contrast (before the step), and `_exact_state`


def train_toy(
    law: Mixture,
    langevin: Langevin,
    *,
    steps: int,
    batch: int = 256,
    buffer_size: int = 5000,
    reinit: float = 0.05,
    learning_rate: float = 1e-3,
    width: int = 128,
    seed: int = 0,
    record_every: int = 100,
) -> Toy:
    """JEM on a toy law (section 4): Adam on -(log p(y|x) + log p(x)), chains from a buffer, or short ones at reinit 1.

    The learning rate falls linearly to zero over the second half, which lets the noise of the last batches fade.
    """
    torch.manual_seed(seed)
    model = SwishMLP(law.classes, width)
    optimizer = torch.optim.Adam(model.parameters(), learning_rate, betas=(0.9, 0.999))
    generator = chain_generator(seed, 0)
    start = uniform_start((2,), START_HALF_WIDTH)
    buffer = ReplayBuffer(buffer_size, start, reinit=reinit, generator=generator)
    grid = square_grid(101)
    rows: list[dict[str, float]] = []
    for k in range(steps):
        optimizer.param_groups[0]["lr"] = learning_rate * min(1.0, 2 * (1 - k / steps))
        x, y = law.draw(batch, generator)
        index, x_start = buffer.draw(batch, generator=generator)
        samples = run_chains(model, x_start, langevin, generator=generator)
        buffer.write(index, samples)
        logits = model(torch.cat([x, samples]))
        losses = joint_loss(logits[:batch], y, logits[:batch], logits[batch:])
        if k % record_every == 0 or k + 1 == steps:
            rows.append({"step": k, "contrast": losses.contrast.item()})
            rows[-1] |= _exact_state(law, model, x, samples, langevin, grid)
        optimizer.zero_grad()
        losses.total.backward()
        optimizer.step()
    return Toy(model, buffer, rows)


def _exact_state(
    law: Mixture, model: SwishMLP, x: Tensor, samples: Tensor, langevin: Langevin, grid: Grid
) -> dict[str, float]:
    """Likelihood of the batch, KL, and the step size times the largest curvature met, which chains need below 2."""
    curvature = largest_curvature(model, torch.cat([x, samples]), iterations=5, generator=chain_generator(0, 0))
    return {
        "nll_nats": exact_nll(model, x, grid).item(),
        "kl_nats": kl_data_model(law, model, grid),
        "step_times_curvature": langevin.step_size * float(curvature.max()),
    }


def angle_study(
    toy: Toy, law: Mixture, langevins: dict[str, Langevin], *, chains: int = 2000, seed: int = 0
) -> dict[str, dict[str, Angle]]:
    """Angles for each named sampler from two starts: "buffer" of the training, and "noise", a short run of its own.

    Both starts and all samplers see the same data and, from the same start, the same noise.
    """
    data, _ = law.draw(chains, chain_generator(seed, 0))
    _, stored = toy.buffer.draw(chains, generator=chain_generator(seed, 1))
    fresh = toy.buffer.start(torch.zeros(chains, dtype=torch.long), chain_generator(seed, 2))
    grid = square_grid()
    return {
        name: {
            label: gradient_angle(
                toy.model, data, run_chains(toy.model, start, langevin, generator=chain_generator(seed, 3)), grid
            )
            for label, start in (("buffer", stored), ("noise", fresh))
        }
        for name, langevin in langevins.items()
    }
