"""Many linear ranking models trained at once: folds and configurations are leading dimensions of one tensor.

Scores are (F, k, C, R): F training sets (folds, or seeds), k labels or items, C configurations, R instances. With this
order every operation on a pair of labels works on long contiguous rows, which on a CPU is several times as fast as
with the labels last. Features are (F, 1, m, R) where each label has weights of its own (F, k, C, m), and (F, k, m, R)
where each of k items has features and one weight vector (F, 1, C, m) serves them all.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

#: Scores (F, k, C, R), ranks (F, k, 1, R), what is tuned (F or 1, 1, C, 1), random numbers -> slope in the scores.
Gradient = Callable[[Tensor, Tensor, Tensor, torch.Generator], Tensor]

STEPS = 200
#: Of Adam at the first step; 0.1 leaves the convex losses short of their minimum after 200 steps.
LEARNING_RATE = 0.3
#: Most instances a step; a longer training set is gone through in equal slices, again and again.
ROWS = 2048
_BETA1, _BETA2, _TINY = 0.9, 0.999, 1e-8


def counted_ranks(theta: Tensor, dim: int = -1) -> Tensor:
    """Ascending ranks 1..n along `dim`, as `shared.solvers.simple.ranking` gives them, by comparing all pairs.

    For up to about 16 scores that beats a sort. Equal scores are ranked in the order of their positions.
    """
    columns = theta.unbind(dim)
    ranks = [torch.ones_like(column) for column in columns]
    for i in range(len(columns)):
        for j in range(i):
            above = (columns[i] >= columns[j]).to(theta.dtype)
            ranks[i] += above
            ranks[j] += 1 - above
    return torch.stack(ranks, dim)


def linear_scores(features: Tensor, weights: Tensor) -> Tensor:
    """Scores (F, k, C, R) of features (F, 1, m, R) and weights (F, k, C, m), or (F, k, m, R) and (F, 1, C, m)."""
    if features.shape[1] > 1:
        return weights @ features
    # One product for all labels, rather than one copy of the features for each.
    f, k, c, _ = weights.shape
    return (weights.flatten(1, 2) @ features[:, 0]).view(f, k, c, -1)


def fit(
    features: Tensor,
    targets: Tensor,
    gradient: Gradient,
    setting: Tensor,
    decay: Tensor,
    seed: int,
    *,
    steps: int = STEPS,
    rate: float = LEARNING_RATE,
    intercept: bool = True,
    renormalised: bool = False,
) -> Tensor:
    """Weights after some steps of Adam with a cosine schedule, from the same small random ones for every arm.

    Minimised is the mean loss over instances plus decay / 2 times the squared weights, without the intercept's.

    Args:
        features: (F, 1, m, R) or (F, k, m, R); the instances in random order.
        targets: ascending ranks (F, k, 1, R).
        gradient: of the loss of each instance in its scores.
        setting: (F or 1, 1, C, 1), given to `gradient`.
        decay: (F or 1, 1, C, 1).
        seed: of the first weights and of whatever `gradient` draws.
        steps: of Adam.
        rate: the length of its first step.
        intercept: the last feature is the constant 1.
        renormalised: after each step the weights of a model are scaled to a root mean square of 1: for losses that do
            not change with the scale of the scores, and would otherwise only let it drift.
    """
    f, groups, m, rows = features.shape
    k = targets.shape[1]
    generator = torch.Generator(features.device).manual_seed(seed)
    first = torch.empty(f, k if groups == 1 else 1, 1, m, device=features.device).normal_(0, 0.01, generator=generator)
    weights = first.expand(-1, -1, setting.shape[2], -1).clone().requires_grad_()
    mean, square = torch.zeros_like(weights), torch.zeros_like(weights)
    penalty = decay * _penalised(m, intercept, features.device)
    for step in range(steps):
        part = _slice(step, rows)
        theta = linear_scores(features[..., part], weights)
        upstream = gradient(theta.detach(), targets[..., part], setting, generator) / (part.stop - part.start)
        (slope,) = torch.autograd.grad(theta, weights, upstream)
        with torch.no_grad():
            slope += penalty * weights
            mean.lerp_(slope, 1 - _BETA1)
            square.lerp_(slope.square(), 1 - _BETA2)
            unbiased = (square / (1 - _BETA2 ** (step + 1))).sqrt_().add_(_TINY)
            length = rate * (1 + math.cos(math.pi * step / steps)) / 2
            weights.addcdiv_(mean / (1 - _BETA1 ** (step + 1)), unbiased, value=-length)
            if renormalised:
                weights /= weights.square().mean((1, 3), keepdim=True).sqrt()
    return weights.detach()


def least_squares(features: Tensor, targets: Tensor, decay: Tensor, *, intercept: bool = True) -> Tensor:
    """Weights that minimise half the squared distance of scores and centred ranks, by the normal equations in float64.

    Arguments, penalty and result are those of `fit`; without an intercept the centring is what stands for it.
    """
    x, y = features.double(), targets[:, :, 0].double()
    y = y - (y.shape[1] + 1) / 2
    gram = torch.einsum("fgmr,fgnr->fmn", x, x) / x.shape[-1]
    penalty = (decay * _penalised(x.shape[2], intercept, x.device)).double()
    systems = gram[:, None] + penalty[:, 0].diag_embed()
    if x.shape[1] == 1:
        right = torch.einsum("fmr,fkr->fmk", x[:, 0], y) / x.shape[-1]
    else:
        right = torch.einsum("fkmr,fkr->fm", x, y)[..., None] / x.shape[-1]
    solutions: Tensor = torch.linalg.solve(systems, right[:, None].expand(-1, systems.shape[1], -1, -1))
    return solutions.permute(0, 3, 1, 2).to(features.dtype)


def _penalised(m: int, intercept: bool, device: torch.device) -> Tensor:
    """1 for each of m features, 0 for the intercept."""
    mask = torch.ones(m, device=device)
    if intercept:
        mask[-1] = 0
    return mask


def _slice(step: int, rows: int) -> slice:
    """The instances of one step: as few equal slices as `ROWS` allows, in turn; fewer rows than slices are left out."""
    count = -(-rows // ROWS)
    length = rows // count
    start = step % count * length
    return slice(start, start + length)
