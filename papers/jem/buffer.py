"""The replay buffer that makes short chains long (Grathwohl et al., 2020, section 4).

Chains start where earlier ones ended, or, with probability rho, from fresh noise. A slot is visited 1 / rho times
between two fresh starts, on average: at 20 steps a visit and rho = 0.05 its chain grows to some 400
steps. Training with it is persistent contrastive divergence.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

#: Labels (N,) and a generator -> fresh starts (N, *shape). The uniform start makes no use of the labels.
Start = Callable[[Tensor, torch.Generator | None], Tensor]


def uniform_start(shape: tuple[int, ...], half_width: float = 1.0) -> Start:
    """Independent U(-half_width, half_width) in each of the coordinates `shape`; the paper's is U(-1, 1)."""

    def start(labels: Tensor, generator: torch.Generator | None) -> Tensor:
        x = torch.empty((len(labels), *shape), device=labels.device)
        return x.uniform_(-half_width, half_width, generator=generator)

    return start


@dataclass(frozen=True)
class ClassGaussians:
    """One Gaussian a class with the mean and the covariance of its data: an informative start, not the paper's.

    Attributes:
        means: (K, *shape).
        factors: (K, R, D) with factors[y]^T factors[y] the covariance of class y; D coordinates, R the rank.
    """

    means: Tensor
    factors: Tensor

    def __call__(self, labels: Tensor, generator: torch.Generator | None) -> Tensor:
        """One draw (N, *shape) for each label (N,)."""
        z = torch.empty((len(labels), self.factors.shape[1]), device=labels.device).normal_(generator=generator)
        x = self.means[labels].flatten(1)
        for y, factor in enumerate(self.factors):
            of_class = labels == y
            x[of_class] += z[of_class] @ factor
        return x.view(-1, *self.means.shape[1:])


def fit_class_gaussians(x: Tensor, labels: Tensor, classes: int) -> ClassGaussians:
    """The Gaussians with mean and sample covariance (divisor N - 1) of each class of (N, *shape).

    Works where a class has fewer examples than coordinates: no covariance is inverted.

    Raises:
        ValueError: a class has fewer than two examples.
    """
    counts = torch.bincount(labels, minlength=classes).tolist()
    few = [y for y in range(classes) if counts[y] < 2]
    if few:
        raise ValueError(f"a covariance needs two examples of each class, there are fewer of {few}")
    flat = x.flatten(1).float()
    rank = min(max(counts), flat.shape[1])
    means = torch.stack([flat[labels == y].mean(0) for y in range(classes)])
    factors = flat.new_zeros(classes, rank, flat.shape[1])
    for y in range(classes):
        # R of the QR decomposition has R^T R = C^T C with the fewest rows; C are the centred examples.
        triangle = torch.linalg.qr(flat[labels == y] - means[y], mode="r").R
        factors[y, : len(triangle)] = triangle / (counts[y] - 1) ** 0.5
    return ClassGaussians(means.view(classes, *x.shape[1:]), factors)


class ReplayBuffer:
    """`size` states of chains, on one device; part of the state of a run.

    The slots of class y are the contiguous slice [y size / K, (y + 1) size / K).

    Args:
        size: number of slots, a multiple of `classes` (the paper: 10,000).
        start: law of fresh starts; it fills the buffer and reinitialises slots.
        reinit: rho, probability of a fresh start (the paper: 0.05). 1 is sampling without a buffer.
        classes: K; with 1, the default, labels have no meaning.
        generator: of the first filling, on `device`.

    Raises:
        ValueError: a size that classes cannot share, or no probability.
    """

    def __init__(
        self,
        size: int,
        start: Start,
        *,
        reinit: float = 0.05,
        classes: int = 1,
        device: torch.device | str = "cpu",
        generator: torch.Generator | None = None,
    ) -> None:
        if classes < 1 or size < classes or size % classes:
            raise ValueError(f"a buffer of {size} cannot be shared equally by {classes} classes")
        if not 0 <= reinit <= 1:
            raise ValueError(f"the probability of a fresh start is in [0, 1], got {reinit}")
        self.start, self.reinit, self.classes, self.per_class = start, reinit, classes, size // classes
        self.states = start(torch.arange(size, device=device) // self.per_class, generator)
        #: Slots of the last `write`.
        self.recent = torch.arange(0, device=device)

    def __len__(self) -> int:
        return len(self.states)

    def draw(
        self, count: int, labels: Tensor | None = None, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Slots drawn uniformly with replacement, and where chains from them start; the buffer is left as it is.

        Args:
            count: number of chains.
            labels: int64 (count,), classes whose slices are drawn from; all slots by default.
            generator: on the buffer's device.

        Returns:
            Slots int64 (count,) for `write`, and starts (count, *shape): copies of the slots, or fresh.

        Raises:
            ValueError: labels that are not (count,).
        """
        device = self.states.device
        if labels is None:
            index = torch.randint(len(self), (count,), generator=generator, device=device)
        elif labels.shape == (count,):
            within = torch.randint(self.per_class, (count,), generator=generator, device=device)
            index = labels.to(device) * self.per_class + within
        else:
            raise ValueError(f"labels {tuple(labels.shape)} do not go with {count} chains")
        x = self.states[index]
        fresh = torch.rand(count, generator=generator, device=device) < self.reinit
        # Drawn for these rows alone: a draw from a Gaussian costs a matrix product.
        x[fresh] = self.start(index[fresh] // self.per_class, generator)
        return index, x

    def write(self, index: Tensor, x: Tensor) -> None:
        """Put the final states x (N, *shape) into the slots they were drawn from; of a slot drawn twice the last one.

        Raises:
            ValueError: shapes that do not fit.
        """
        if x.shape != (len(index), *self.states.shape[1:]):
            raise ValueError(f"states {tuple(x.shape)} do not go into {len(index)} slots of {self.states.shape[1:]}")
        # Indexed assignment promises no order for repeated indices, so each of them writes the last one's state.
        position = torch.arange(len(index), device=index.device)
        last = ((index[:, None] == index) * position).amax(1)
        self.states[index] = x.detach()[last].to(self.states.dtype)
        self.recent = index.clone()

    def state_dict(self) -> dict[str, Tensor]:
        """What is saved."""
        return {"states": self.states, "recent": self.recent}

    def load_state_dict(self, state: Mapping[str, Tensor], /) -> None:
        """What was saved, copied into place.

        Raises:
            ValueError: a buffer of another shape.
        """
        saved = state["states"]
        if saved.shape != self.states.shape:
            raise ValueError(f"a buffer {tuple(saved.shape)} does not go into one of {tuple(self.states.shape)}")
        self.states.copy_(saved)
        self.recent = state["recent"].to(self.states.device)
