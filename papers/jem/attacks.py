"""Projected gradient descent against a classifier, and refinement as a defence (Grathwohl et al., 2020, section 5.4).

Images are (B, C, H, W) in [-1, 1]. Radii are told in the units of the box [0, 1], as the literature does: a radius of
8/255 is eight grey levels, and twice as much on the scale of the network. A classifier is a callable from images to
logits (B, K); it may draw random numbers, from torch's generator. Call `seed_step` or `manual_seed` first for the same
numbers again. Put a network into evaluation mode beforehand.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from papers.jem.energy import Network, log_marginal
from papers.jem.sgld import Langevin
from shared.data.batches import seed_step

Refinement = Callable[[Tensor], Tensor]
Norm = Literal["linf", "l2"]

#: Length of a radius of 1 in the box [0, 1] on the scale [-1, 1].
_SCALE = 2.0
#: Images may leave the box by rounding.
_ROUNDING = 1e-5


@dataclass(frozen=True)
class Attack:
    """Projected gradient ascent (Madry et al., 2018): the defaults are those of the paper's code, but for restarts.

    Attributes:
        norm: of the ball, "linf" or "l2".
        steps: gradient steps of each start.
        relative_step: length of a step as a share of the radius; None is 2.5 / steps, which can cross the ball.
        restarts: starts of each image.
        random_start: begin anywhere in the ball, else at the image.
        draws: forward passes whose losses are averaged for a gradient: expectation over the noise of a random
            classifier (Athalye et al., 2018). With a deterministic one more than 1 is a waste.
        loss: what is climbed, "cross_entropy" or "margin", the largest other logit less the label's, whose gradient
            does not vanish where the classifier is very sure (Carlini & Wagner, 2017).
    """

    norm: Norm = "linf"
    steps: int = 40
    relative_step: float | None = None
    restarts: int = 1
    random_start: bool = True
    draws: int = 1
    loss: Literal["cross_entropy", "margin"] = "cross_entropy"

    def __post_init__(self) -> None:
        if self.norm not in ("linf", "l2") or self.loss not in ("cross_entropy", "margin"):
            raise ValueError(f"no attack has norm {self.norm!r} and loss {self.loss!r}")
        if self.steps < 0 or self.restarts < 1 or self.draws < 1:
            raise ValueError(f"{self.steps} steps, {self.restarts} restarts and {self.draws} draws are no attack")


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """Largest logit of another class less that of the label (B,): positive where the classifier is wrong."""
    own = F.one_hot(labels, logits.shape[1]).bool()
    return logits.masked_fill(own, -math.inf).amax(1) - logits[own]


def pgd(
    classify: Network, x: Tensor, labels: Tensor, eps: float, attack: Attack, start: Tensor | None = None
) -> Tensor:
    """Images (B, C, H, W) within `eps` of `x` and within [-1, 1]: of all that were visited those of largest margin.

    Args:
        eps: radius in the units of the box [0, 1].
        start: where the first of the restarts begins, such as the result of a smaller radius; None is as the others.

    Raises:
        ValueError: an image is outside [-1, 1], or the radius is negative.
    """
    if eps < 0 or x.abs().max() > 1 + _ROUNDING:
        raise ValueError(f"an attack needs a radius >= 0 and images in [-1, 1], got {eps:g} and {x.abs().max():g}")
    radius = _SCALE * eps
    step = radius * (2.5 / max(attack.steps, 1) if attack.relative_step is None else attack.relative_step)
    best, largest = x.clone(), torch.full((len(x),), -math.inf, device=x.device)
    for restart in range(attack.restarts):
        if restart == 0 and start is not None:
            now = _project(start, x, radius, attack.norm)
        else:
            now = _project(x + _in_ball(x, radius, attack.norm), x, radius, attack.norm) if attack.random_start else x
        for k in range(attack.steps + 1):
            reached, slope = _margin_and_slope(classify, now, labels, attack, last=k == attack.steps)
            better = reached > largest
            best, largest = torch.where(_each(better, x), now, best), torch.where(better, reached, largest)
            if k < attack.steps:
                now = _project(now + step * _direction(slope, attack.norm), x, radius, attack.norm)
    return best


def _each(flags: Tensor, x: Tensor) -> Tensor:
    return flags.view(-1, *[1] * (x.ndim - 1))


def _lengths(x: Tensor) -> Tensor:
    """Euclidean lengths (B, 1, 1, 1), never 0."""
    return _each(x.flatten(1).norm(dim=1), x).clamp(min=1e-30)


def _direction(slope: Tensor, norm: Norm) -> Tensor:
    """The unit step that climbs a linear function fastest."""
    return slope.sign() if norm == "linf" else slope / _lengths(slope)


def _in_ball(x: Tensor, radius: float, norm: Norm) -> Tensor:
    """Differences with the uniform law on the ball, of the shape of `x`."""
    if norm == "linf":
        return radius * (2 * torch.rand_like(x) - 1)
    direction = torch.randn_like(x)
    share = torch.rand(len(x), device=x.device).pow(1 / x[0].numel())
    return radius * _each(share, x) * direction / _lengths(direction)


def _project(now: Tensor, x: Tensor, radius: float, norm: Norm) -> Tensor:
    """Into the ball around `x`, then into the box; the second step moves no coordinate away from `x`."""
    shift = now - x
    shift = shift.clamp(-radius, radius) if norm == "linf" else shift * (radius / _lengths(shift)).clamp(max=1)
    return (x + shift).clamp(-1, 1)


def _margin_and_slope(
    classify: Network, x: Tensor, labels: Tensor, attack: Attack, last: bool
) -> tuple[Tensor, Tensor]:
    """Margin (B,) of the logits averaged over the draws, and the gradient of the averaged loss, of the shape of `x`."""
    with torch.set_grad_enabled(not last):
        leaf = x.detach().requires_grad_()
        repeated = labels.repeat_interleave(attack.draws)
        logits = classify(leaf.repeat_interleave(attack.draws, 0) if attack.draws > 1 else leaf).float()
        reached = margin(logits.detach().view(len(x), attack.draws, -1).mean(1), labels)
        if last:
            return reached, torch.zeros_like(x)
        climbed = margin(logits, repeated) if attack.loss == "margin" else _cross_entropy(logits, repeated)
        (slope,) = torch.autograd.grad(climbed.sum() / attack.draws, leaf)
    return reached, slope


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits, labels, reduction="none")


# --- robust accuracy ---


def smallest_fooling_eps(
    classify: Network,
    x: Tensor,
    labels: Tensor,
    eps_grid: Sequence[float],
    attack: Attack,
    *,
    seed: int = 0,
    batch_size: int = 250,
    surrogate: Network | None = None,
) -> Tensor:
    """For each image the smallest radius of the grid that fools the classifier: float64 (N,), infinite if none does.

    0 is an image that is misclassified as it is. The radii are tried in rising order; each starts from the result of
    the one before, and only with images that are not yet fooled, because what fools at one radius is inside every
    larger one. So robust accuracy cannot rise with the radius. A random classifier is judged on fresh draws, as many
    as the attack had, and one wrong judgement is enough: chance counts for the attacker.

    Args:
        eps_grid: radii > 0 in the units of the box [0, 1].
        seed: of all random numbers; every batch of images has its own.
        surrogate: the classifier whose gradients are followed, for a transfer attack; None attacks `classify` itself.

    Raises:
        ValueError: a radius is not positive, or an image is outside [-1, 1].
    """
    grid = sorted(set(eps_grid))
    if not grid or grid[0] <= 0:
        raise ValueError(f"radii of an attack are above 0, got {list(eps_grid)}")
    found = []
    for batch, (images, truth) in enumerate(zip(x.split(batch_size), labels.split(batch_size))):
        seed_step(seed, batch)
        smallest = torch.full((len(images),), math.inf, dtype=torch.float64, device=x.device)
        smallest[_judged(classify, images, attack.draws) != truth] = 0.0
        reached = images.clone()
        for eps in grid:
            left = smallest.isinf().nonzero()[:, 0]
            if len(left):
                source = classify if surrogate is None else surrogate
                start = reached[left] if eps != grid[0] else None
                adversarial = pgd(source, images[left], truth[left], eps, attack, start)
                reached[left] = adversarial
                smallest[left[_judged(classify, adversarial, attack.draws) != truth[left]]] = eps
        found.append(smallest)
    return torch.cat(found)


def _judged(classify: Network, x: Tensor, draws: int) -> Tensor:
    """The class (B,) of the mean logits of some draws."""
    with torch.no_grad():
        logits = classify(x.repeat_interleave(draws, 0) if draws > 1 else x)
    return logits.float().view(len(x), draws, -1).mean(1).argmax(1)


def robust_accuracy(smallest: Tensor, eps_grid: Sequence[float]) -> list[float]:
    """Share of images that no radius up to eps fools, for each eps; eps = 0 is the accuracy without an attack."""
    return [float((smallest > eps).double().mean()) for eps in eps_grid]


# --- refinement before classification ---


def refined_logits(
    network: Network,
    x: Tensor,
    refine: Refinement | None = None,
    *,
    chains: int = 1,
    input_noise: float = 0.0,
    gradient: Literal["straight_through", "full"] = "straight_through",
) -> Tensor:
    """JEM-k: move each image uphill on log p(x) before it is classified; logits (B, K), the mean over the chains.

    The paper's code has 5 chains, noise 0.03 (0 against L2) and k = 0, 1 or 10 steps. Without refinement, noise and
    further chains it is the classifier itself.

    Args:
        refine: images to images, such as `partial(run_chains, network, langevin=...)`; None leaves them.
        chains: copies of each image, with noise of their own.
        input_noise: standard deviation of the Gaussian noise on each copy, on the scale [-1, 1].
        gradient: what an attacker sees. "straight_through" takes refinement for the identity, as the paper's code
            does; "full" goes back through every step, so `refine` has to keep its graph (`refine_with_graph`).
    """
    copies = x.repeat_interleave(chains, 0) if chains > 1 else x
    if input_noise:
        copies = copies + input_noise * torch.randn_like(copies)
    if refine is not None:
        copies = refine(copies) if gradient == "full" else copies + (refine(copies.detach()) - copies).detach()
    return network(copies).float().view(len(x), chains, -1).mean(1)


def refine_with_graph(network: Network, x: Tensor, langevin: Langevin) -> Tensor:
    """The chains of `run_chains` (equation 3) with their graph, images (B, C, H, W) to images.

    Memory grows with the number of steps. Where no gradient is asked for, no graph is kept.
    """
    kept = torch.is_grad_enabled() and x.requires_grad
    for _ in range(langevin.steps):
        with torch.enable_grad():
            x = x if kept else x.detach().requires_grad_()
            (slope,) = torch.autograd.grad(log_marginal(network(x)).sum(), x, create_graph=kept)
            if langevin.gradient_clamp is not None:
                slope = slope.clamp(-langevin.gradient_clamp, langevin.gradient_clamp)
            x = x + langevin.step_size * slope + langevin.sigma * torch.randn_like(x)
            if langevin.sample_clamp is not None:
                x = x.clamp(-langevin.sample_clamp, langevin.sample_clamp)
    return x if kept else x.detach()
