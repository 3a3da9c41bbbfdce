"""The losses that are compared on rankings, each as the gradient in the scores of linear models, and what it tunes.

The temperature is 1 throughout: in a linear model it changes nothing that the penalty on the weights does not change.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from papers.perturbed_optimizers.fenchel_young import fenchel_young_loss
from papers.perturbed_optimizers.perturbed import Noise, Perturbation, draw_noise
from papers.perturbed_optimizers.ranking_models import (
    LEARNING_RATE,
    Gradient,
    counted_ranks,
    fit,
    least_squares,
    linear_scores,
)
from papers.perturbed_optimizers.rivals import black_box, ranknet, squared_error

#: What an arm chooses from: penalties on the weights, each with a strength lambda that only black-box arms look at.
Grid = tuple[tuple[float, float], ...]
DECAYS: Grid = tuple((decay, 1.0) for decay in (1e-5, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0, 1000.0))
#: lambda in units of scores per rank; without a penalty, which has no say where the size of the weights is fixed.
STRENGTHS: Grid = tuple((0.0, strength) for strength in (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0))


#: Instances below which a single validation fifth says too little.
FEW = 300


@dataclass(frozen=True)
class Arm:
    """A way to train the linear model.

    Attributes:
        gradient: of the loss; None for least squares on the ranks, which is solved.
        grid: the settings to choose from.
        renormalised: the weights are scaled to a root mean square of 1 after each step.
        rate: of Adam at the first step.
        follows: the arm whose choice is taken over, where choosing would only repeat it.
    """

    gradient: Gradient | None
    grid: Grid = DECAYS
    renormalised: bool = False
    rate: float = LEARNING_RATE
    follows: str | None = None


def soft_ranks(theta: Tensor, noise: Noise) -> Tensor:
    """Perturbed ranks for temperature 1, labels in dimension 1: (F, k, C, R) -> (F, k, C, R).

    The same numbers as `closed_forms.ranking_maximiser`, in the order that suits `ranking_models`.
    """
    k = theta.shape[1]
    ranks = torch.full_like(theta, (k + 1) / 2)
    for i in range(k - 1):
        ahead = theta[:, i : i + 1] - theta[:, i + 1 :]
        # Phi(x / sqrt 2) is half of 1 + erf(x / 2).
        half = ahead.sigmoid_().sub_(0.5) if noise == "gumbel" else ahead.mul_(0.5).erf_().mul_(0.5)
        ranks[:, i] += half.sum(1)
        ranks[:, i + 1 :] -= half
    return ranks


def jacobian_product(theta: Tensor, v: Tensor) -> Tensor:
    """The product of the Jacobian of `soft_ranks` for Gumbel noise with v, both (F, k, C, R); it is symmetric."""
    product = torch.zeros_like(theta)
    for i in range(theta.shape[1] - 1):
        ahead = (theta[:, i : i + 1] - theta[:, i + 1 :]).sigmoid_()
        moved = (ahead - ahead.square()).mul_(v[:, i : i + 1] - v[:, i + 1 :])
        product[:, i] += moved.sum(1)
        product[:, i + 1 :] -= moved
    return product


def fenchel_young_gradient(theta: Tensor, targets: Tensor, _: Tensor, __: torch.Generator, noise: Noise) -> Tensor:
    """The gradient of the exact Fenchel-Young loss: y*_1(theta) - y (section 3.2 of the paper)."""
    return soft_ranks(theta, noise) - targets


def squared_gradient(theta: Tensor, targets: Tensor, _: Tensor, __: torch.Generator) -> Tensor:
    """The gradient of half of ||y*_1(theta) - y||^2 through the exact perturbed ranks for Gumbel noise."""
    return jacobian_product(theta, soft_ranks(theta, "gumbel") - targets)


def sampled_gradient(theta: Tensor, targets: Tensor, _: Tensor, generator: torch.Generator, samples: int) -> Tensor:
    """The gradient of the Fenchel-Young loss from `samples` draws of Gaussian noise: the paper's method itself.

    All rankings of a training set are one instance of the loss, which sums over them.
    """
    p = Perturbation(epsilon=1.0, samples=samples)
    scores = theta.requires_grad_()
    noise = draw_noise(theta, p, generator)
    return _slope(fenchel_young_loss(scores, targets.expand_as(theta), _SOLVER, p, noise), scores)


def black_box_gradient(theta: Tensor, targets: Tensor, strength: Tensor, _: torch.Generator) -> Tensor:
    """The black-box gradient of half the squared distance of the ranks; `strength` is (F or 1, 1, C, 1)."""
    scores = theta.requires_grad_()
    return _slope(squared_error(black_box(scores, _SOLVER, strength), targets) / 2, scores)


def ranknet_gradient(theta: Tensor, targets: Tensor, _: Tensor, __: torch.Generator) -> Tensor:
    """The gradient of the pairwise logistic loss."""
    scores = theta.movedim(1, -1).flatten(0, -2).requires_grad_()
    slope = _slope(ranknet(scores, targets.expand_as(theta).movedim(1, -1).flatten(0, -2)), scores)
    return slope.view(theta.movedim(1, -1).shape).movedim(-1, 1)


def _slope(loss: Tensor, scores: Tensor) -> Tensor:
    (slope,) = torch.autograd.grad(loss.sum(), scores)
    return slope


#: Ranks along dimension 1: a maximiser of all the rankings of a tensor at once.
_SOLVER = partial(counted_ranks, dim=1)

ARMS = {
    "least_squares": Arm(None),
    "fy": Arm(partial(fenchel_young_gradient, noise="gumbel")),
    "fy_gaussian": Arm(partial(fenchel_young_gradient, noise="gaussian")),
    "fy_m1": Arm(partial(sampled_gradient, samples=1)),
    "squared_perturbed": Arm(squared_gradient),
    # Weights of a fixed size have to be turned: on training folds, steps ten times as long led much nearer the minimum.
    "black_box": Arm(black_box_gradient, STRENGTHS, renormalised=True, rate=10 * LEARNING_RATE),
    # Without a fixed size the method shrinks its own scores below lambda: shown for this pitfall.
    "black_box_raw": Arm(black_box_gradient, STRENGTHS),
    # The same function as the Fenchel-Young loss with Gumbel noise, written down by others fifteen years before.
    "ranknet": Arm(ranknet_gradient, follows="fy"),
    # So strong a penalty leaves the intercept alone: the ranking by mean rank, whatever the features say.
    "constant": Arm(None, ((1e9, 1.0),)),
}


def train(arm: Arm, features: Tensor, targets: Tensor, setting: Tensor, seed: int, **options: Any) -> Tensor:
    """The weights of linear models trained in one way, for features and targets of `ranking_models.fit`.

    Args:
        arm: the way.
        features: (F, 1, m, R) or (F, k, m, R).
        targets: ascending ranks (F, k, 1, R).
        setting: penalty and strength of each model, (F or 1, 2, C, 1).
        seed: of the first weights and of the noise.
        options: `steps` and `intercept` of `ranking_models.fit`.
    """
    decay, strength = setting.split(1, dim=1)
    if arm.gradient is None:
        return least_squares(features, targets, decay, intercept=options.get("intercept", True))
    return fit(
        features, targets, arm.gradient, strength, decay, seed, rate=arm.rate, renormalised=arm.renormalised, **options
    )


def choose(
    arm: Arm, features: Tensor, targets: Tensor, score: Callable[[Tensor, Tensor], Tensor], seed: int, **options: Any
) -> Tensor:
    """The setting of the arm's grid, (F, 2, 1, 1), with the best mean score on instances left out of training.

    These are the last fifth; of fewer than `FEW` instances each fifth in its turn, as one alone would be chance.
    Trained is on the rest, as by `train`. `score` compares ranks (F, C, R, k) and targets (F, 1, R, k) and gives
    (F, C, R). Of equally good settings the first of the grid wins.
    """
    grid = torch.tensor(arm.grid, device=features.device).T[None, :, :, None]
    if len(arm.grid) == 1:
        return grid.expand(len(features), -1, -1, -1)
    rows = features.shape[-1]
    cut, found = math.floor(0.8 * rows), torch.zeros(len(features), len(arm.grid), device=features.device)
    for turn in range(5 if rows < FEW else 1):
        # The last fifth is now another one.
        x, y = (tensor.roll(turn * (rows - cut), -1) for tensor in (features, targets))
        weights = train(arm, x[..., :cut], y[..., :cut], grid, seed, **options)
        ranks = counted_ranks(linear_scores(x[..., cut:], weights), 1).movedim(1, -1)
        found += score(ranks, y[..., cut:].movedim(1, -1)).mean(-1)
    return grid[0, :, found.argmax(-1)].movedim(1, 0)[..., None]
