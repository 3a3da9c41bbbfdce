"""Estimators of the gradient of E L(X) for a stochastic argmax X, as small functions (Paulus et al., 2020, section 4).

Those with a relaxation differentiate a sample. Those with a score, REINFORCE and its descendants, give a *surrogate*:
a number for each sample whose gradient in the parameters is the estimate and whose value means nothing. Losses and
log-probabilities have the shape (...) of the samples, utilities (..., n) or (..., n, n).
"""

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

#: Utilities -> the best vertex, without gradient.
Solver = Callable[[Tensor], Tensor]
#: Utilities -> a point of the convex hull of the vertices, with gradient.
Relaxation = Callable[[Tensor], Tensor]
Mode = Literal["hard", "relaxed", "straight_through"]


def forward(utilities: Tensor, solver: Solver, relaxation: Relaxation, mode: Mode) -> Tensor:
    """The vertex (`hard`), the relaxed point (`relaxed`), or the vertex with the gradient of the relaxed point.

    `hard` is the stochastic argmax and has no gradient; `relaxed` the stochastic softmax, used in training;
    `straight_through` the former forwards, to the bit, and the latter backwards.

    Raises:
        ValueError: `mode` is none of the three.
    """
    if mode == "hard":
        return solver(utilities.detach())
    if mode == "relaxed":
        return relaxation(utilities)
    if mode == "straight_through":
        soft = relaxation(utilities)
        return solver(utilities.detach()) + (soft - soft.detach())
    raise ValueError(f"{mode!r} is no mode: hard, relaxed, straight_through")


def reinforce(loss: Tensor, log_prob: Tensor, baseline: Tensor | float = 0.0) -> Tensor:
    """The surrogate (L - b) log p of the score-function estimator, of the shape of `loss`.

    `log_prob` is that of whatever the loss is a function of, as long as it was drawn without gradient: the utilities,
    X itself, or the trace of the solver. The fewer variables, the lower the variance (Rao-Blackwell). Unbiased if the
    baseline does not depend on the same sample. The gradient of the loss itself is not in it.
    """
    return (loss - baseline).detach() * log_prob


def mean_of_others(loss: Tensor, dim: int = 0) -> Tensor:
    """The leave-one-out baseline: for each entry the mean of the others along `dim`, in the shape of `loss`.

    Along samples of one instance it gives the multi-sample estimator: loss less the mean of all S, summed and divided
    by S - 1, is loss less the mean of the others, averaged. Along a batch it is an unbiased batch baseline.

    Raises:
        ValueError: one entry has no others.
    """
    count = loss.shape[dim]
    if count < 2:
        raise ValueError("the mean of the other samples needs at least 2 of them")
    return (loss.sum(dim, keepdim=True) - loss) / (count - 1)


def batch_mean(loss: Tensor, dim: int = 0) -> Tensor:
    """The mean along `dim`, the entry itself included, as in the authors' code.

    With it the estimate of a batch of B independent examples is (B - 1)/B times the unbiased one, not more.
    """
    return loss.mean(dim, keepdim=True).expand_as(loss)


def moving_average(average: float | None, loss: Tensor, decay: float = 0.99) -> float:
    """The exponential moving average after one more batch; it begins, at None, with the mean of the first.

    As a baseline use the value *before* the update: it knows nothing of the present samples, so there is no bias.
    """
    mean = loss.detach().mean().item()
    return mean if average is None else decay * average + (1 - decay) * mean


class LearnedBaseline(nn.Module):
    """The input-dependent baseline of NVIL: features of an instance, flattened, to one number (Mnih & Gregor, 2014)."""

    def __init__(self, features: int, hidden: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(features, hidden), nn.ReLU(), nn.Linear(hidden, 1))

    def forward(self, features: Tensor) -> Tensor:
        """(B, ...) with `features` numbers each -> (B,)."""
        prediction: Tensor = self.layers(features).squeeze(-1)
        return prediction


def nvil(loss: Tensor, log_prob: Tensor, predicted: Tensor, average: float) -> tuple[Tensor, Tensor]:
    """The surrogate of NVIL, and the squared error that trains its baseline; both of the shape of `loss`.

    The baseline of a sample is `predicted`, a function of the instance, plus the moving average of the losses; there is
    no division by a standard deviation, as in the authors' code. The two terms have no gradient in common.
    """
    baseline = predicted + average
    return reinforce(loss, log_prob, baseline), (loss.detach() - baseline).square()


def relax(loss: Tensor, log_prob: Tensor, control: Tensor, conditional_control: Tensor) -> Tensor:
    """The surrogate of RELAX (Grathwohl et al., Backpropagation through the void, 2018, equation 7), unbiased.

    Args:
        loss: L(X), without gradient in the parameters of the distribution.
        log_prob: log-probability of X, or of the trace that X is a function of.
        control: c(U), any differentiable function of the utilities that gave X, such as the loss of a relaxation.
        conditional_control: the same c at other utilities drawn given X (the trace), by
            `papers.sst.utilities.conditional_gumbel`, differentiable in the parameters.

    REBAR is the case of a control variate without parameters of its own. To train those of c, differentiate the sum of
    squares of the gradient.
    """
    return reinforce(loss, log_prob, conditional_control) + control - conditional_control


def implicit_mle(utilities: Tensor, solver: Solver, step: float, central: bool = False) -> Tensor:
    """The vertex of perturbed scores, with the gradient of implicit maximum likelihood (Niepert et al., 2021).

    Backwards, with the incoming gradient v and the step h, the gradient in the utilities is the difference
    (x(U) - x(U - h v)) / h of two solutions; `central`: (x(U + h v) - x(U - h v)) / (2 h). For a loss linear in x it is
    in the mean a finite difference of E x along v, so that its bias goes to 0 with h while its variance grows.

    Raises:
        ValueError: the step is not positive.
    """
    if not 0 < step < math.inf:
        raise ValueError(f"the step of a finite difference is positive and finite, got {step}")
    x: Tensor = _ImplicitMle.apply(utilities, solver, step, central)  # type: ignore[no-untyped-call]
    return x


class _ImplicitMle(torch.autograd.Function):
    """A solution, and differences of solutions backwards."""

    @staticmethod
    def forward(ctx: Any, utilities: Tensor, solver: Solver, step: float, central: bool) -> Tensor:
        x = solver(utilities)
        ctx.save_for_backward(utilities, x)
        ctx.solver, ctx.step, ctx.central = solver, step, central
        return x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor, None, None, None]:
        utilities, x = ctx.saved_tensors
        below = ctx.solver(utilities - ctx.step * v)
        if ctx.central:
            return (ctx.solver(utilities + ctx.step * v) - below) / (2 * ctx.step), None, None, None
        return (x - below) / ctx.step, None, None, None
