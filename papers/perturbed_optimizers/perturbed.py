"""Perturbed maximisers (Berthet et al., 2020, sections 2 and 3.1): differentiable means of solutions under noise.

A linear maximiser y*(theta) = argmax_y <theta, y> over a finite set is piecewise constant: its gradient is zero or
undefined. Its mean under noise, y*_eps(theta) = E y*(theta + eps Z), is smooth, and so is the mean of the maximum,
F_eps(theta) = E max_y <theta + eps Z, y>, whose gradient it is. Both are estimated from M samples, with nothing but
calls to the solver; the derivative of the former comes from the density of the noise, not from the solver.

Everywhere the first dimension of theta is the batch and the others are one instance: (B, d), (B, H, W), (B, n, n).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

#: Scores (N, *instance) -> one maximiser of <theta, y> for each instance, in the same shape.
Solver = Callable[[Tensor], Tensor]
Noise = Literal["gaussian", "gumbel"]
Control = Literal["none", "solution", "leave_one_out"]


@dataclass(frozen=True)
class Perturbation:
    """How scores are perturbed.

    Attributes:
        epsilon: temperature, in the unit of the scores (without unit where the noise is multiplicative).
        samples: M, solver calls an instance.
        noise: law of Z, standard in each coordinate.
        control: what is subtracted from the solutions in the backward pass of `perturbed_maximiser`, to lower its
            variance: nothing, the solution without noise (one more solver call), or the mean of the other samples.
        antithetic: samples come in pairs (Z, -Z); for Gumbel noise u and 1 - u in its distribution function.
        multiplicative: scores are multiplied by exp(eps Z - eps^2/2), of mean 1, and keep their signs.
    """

    epsilon: float = 1.0
    samples: int = 1
    noise: Noise = "gaussian"
    control: Control = "none"
    antithetic: bool = False
    multiplicative: bool = False

    def __post_init__(self) -> None:
        if not self.epsilon > 0:
            raise ValueError(f"epsilon is a positive temperature, got {self.epsilon}")
        if self.samples < 1:
            raise ValueError(f"at least one sample, got {self.samples}")
        if self.antithetic and self.samples % 2:
            raise ValueError(f"antithetic samples come in pairs: an even number, got {self.samples}")
        if self.control == "leave_one_out" and self.samples < 2:
            raise ValueError("leave_one_out needs the mean of other samples: at least 2")
        if self.control == "leave_one_out" and self.antithetic:
            raise ValueError("leave_one_out takes the other samples as independent, antithetic ones are not")
        if self.multiplicative and self.noise != "gaussian":
            raise ValueError("multiplicative noise is log-normal: it needs gaussian noise")


def draw_noise(theta: Tensor, p: Perturbation, generator: torch.Generator | None = None) -> Tensor:
    """Standard noise Z of shape (M, *theta.shape), in the dtype and on the device of `theta`.

    Given to several calls, it makes their randomness common.
    """
    pairs = p.samples // 2 if p.antithetic else p.samples
    empty = torch.empty((pairs, *theta.shape), dtype=theta.dtype, device=theta.device)
    if p.noise == "gaussian":
        z = empty.normal_(generator=generator)
        return torch.cat([z, -z]) if p.antithetic else z
    # exp(-Z) of a Gumbel variable Z is exponential; 0 would make Z infinite.
    waiting = empty.exponential_(generator=generator).clamp_min_(torch.finfo(theta.dtype).tiny)
    if p.antithetic:
        waiting = torch.cat([waiting, torch.log(-torch.expm1(-waiting)).neg_()])
        waiting.clamp_min_(torch.finfo(theta.dtype).tiny)
    return waiting.log_().neg_()


def score(z: Tensor, noise: Noise) -> Tensor:
    """The gradient of nu, where exp(-nu) is the density of the noise up to a constant: z, or 1 - exp(-z) for Gumbel."""
    return z if noise == "gaussian" else -torch.expm1(-z)


def perturb(theta: Tensor, z: Tensor, p: Perturbation) -> Tensor:
    """The perturbed scores (M, B, *instance): theta + eps z, or theta * exp(eps z - eps^2/2)."""
    if p.multiplicative:
        return theta * _weights(z, p)
    return torch.add(theta, z, alpha=p.epsilon)


def perturbed_maximiser(theta: Tensor, solver: Solver, p: Perturbation, noise: Tensor | None = None) -> Tensor:
    """The Monte-Carlo estimate of y*_eps(theta) = E y*(theta + eps Z) (B, *instance), differentiable in theta.

    The forward pass makes one call of the solver with M B instances. The backward pass is the unbiased estimate of
    section 3.1: with an incoming gradient v, (1/(M eps)) sum_m <y_m - baseline, v> grad nu(Z_m), never a Jacobian.
    For multiplicative noise it is divided by theta, since the noise then shifts log theta.

    Args:
        theta: scores (B, *instance), floating-point; none of them 0 where the noise is multiplicative.
        solver: the maximiser; it is never differentiated.
        p: the perturbation.
        noise: (M, B, *instance) from `draw_noise`; drawn here by default.

    Raises:
        ValueError: shapes that do not fit, or a zero score under multiplicative noise.
    """
    z, _, solutions = _solve(theta, solver, p, noise)
    mean: Tensor = _Mean.apply(theta, solutions, z, solver, p, False)  # type: ignore[no-untyped-call]
    return mean


def perturbed_maximum(
    theta: Tensor, solver: Solver, p: Perturbation, noise: Tensor | None = None, minus: Tensor | None = None
) -> Tensor:
    """The Monte-Carlo estimate of F_eps(theta) = E max_y <theta + eps Z, y>, shape (B,), twice differentiable.

    By Danskin's theorem the gradient of each maximum is its solution, so the gradient is the mean solution of the same
    samples: value and gradient belong together exactly. The second derivative is that of `perturbed_maximiser`.
    The other arguments and the errors are those of `perturbed_maximiser`.

    Args:
        minus: a constant (B, *instance) whose inner product with theta is subtracted, as in the Fenchel-Young loss.
    """
    z, perturbed, solutions = _solve(theta, solver, p, noise)
    value: Tensor = _Maximum.apply(theta, perturbed, solutions, z, minus, solver, p)  # type: ignore[no-untyped-call]
    return value


def _solve(theta: Tensor, solver: Solver, p: Perturbation, noise: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Noise, perturbed scores and their solutions, all (M, B, *instance)."""
    if theta.ndim < 2 or not theta.is_floating_point():
        raise ValueError(f"scores are floating-point numbers of shape (B, *instance), got {theta.dtype} {theta.shape}")
    with torch.no_grad():
        if p.multiplicative and (theta == 0).any():
            raise ValueError("a score is 0: multiplicative noise cannot move it, so it has no derivative")
        z = draw_noise(theta, p) if noise is None else noise
        if z.shape != (p.samples, *theta.shape):
            raise ValueError(f"noise has the shape (M, *theta.shape) = {(p.samples, *theta.shape)}, got {z.shape}")
        perturbed = perturb(theta, z, p)
        together = perturbed.flatten(0, 1)
        solutions = solver(together)
        if solutions.shape != together.shape:
            raise ValueError(f"the solver turned scores {tuple(together.shape)} into {tuple(solutions.shape)}")
    return z, perturbed, solutions.view_as(perturbed)


def _weights(z: Tensor, p: Perturbation) -> Tensor:
    """The factors exp(eps z - eps^2/2) of multiplicative noise."""
    return torch.exp(p.epsilon * z - p.epsilon**2 / 2)


class _Maximum(torch.autograd.Function):
    """Value mean_m <theta_m, y_m> - <theta, minus>; gradient the mean solution less `minus`, itself differentiable."""

    @staticmethod
    def forward(
        ctx: Any,
        theta: Tensor,
        perturbed: Tensor,
        solutions: Tensor,
        z: Tensor,
        minus: Tensor | None,
        solver: Solver,
        p: Perturbation,
    ) -> Tensor:
        ctx.save_for_backward(theta, solutions, z, minus)
        ctx.solver, ctx.p = solver, p
        value = torch.linalg.vecdot(perturbed.flatten(2), solutions.flatten(2)).mean(0)
        return value if minus is None else value - torch.linalg.vecdot(theta.flatten(1), minus.flatten(1))

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        theta, solutions, z, minus = ctx.saved_tensors
        p: Perturbation = ctx.p
        terms = solutions * _weights(z, p) if p.multiplicative else solutions
        if torch.is_grad_enabled():  # somebody will differentiate once more
            mean = _Mean.apply(theta, terms, z, ctx.solver, p, p.multiplicative)  # type: ignore[no-untyped-call]
        else:
            mean = terms.mean(0)
        gradient = mean if minus is None else mean - minus
        return gradient * upstream.view(-1, *[1] * (theta.ndim - 1)), None, None, None, None, None, None


class _Mean(torch.autograd.Function):
    """The mean over samples of terms that depend on theta through the noise alone; backward by the noise's score.

    `weighted` terms are the gradient w * y of a maximum under multiplicative noise w. The noise shifts w * theta, so
    that E[w y] = E[(theta w) y] / theta has one more derivative, -E[w y] / theta on the diagonal.
    """

    @staticmethod
    def forward(
        ctx: Any, theta: Tensor, terms: Tensor, z: Tensor, solver: Solver, p: Perturbation, weighted: bool
    ) -> Tensor:
        mean = terms.mean(0)
        ctx.save_for_backward(theta, terms, z, mean)
        ctx.solver, ctx.p, ctx.weighted = solver, p, weighted
        return mean

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor | None, ...]:
        theta, terms, z, mean = ctx.saved_tensors
        p: Perturbation = ctx.p
        inner = torch.linalg.vecdot(terms.flatten(2), v.flatten(1))
        if p.control == "solution":
            inner = inner - torch.linalg.vecdot(ctx.solver(theta).flatten(1), v.flatten(1))
        elif p.control == "leave_one_out":
            # a_m - mean of the others = (a_m - mean of all) M / (M - 1).
            inner = (inner - inner.mean(0)) * (p.samples / (p.samples - 1))
        inner = inner.div_(p.samples * p.epsilon)
        # Few samples of large instances: a product and a sum are faster than a batched matrix product.
        gradient = (score(z, p.noise).flatten(2) * inner[..., None]).sum(0).view_as(theta)
        if p.multiplicative:
            gradient = (gradient - v * mean if ctx.weighted else gradient) / theta
        return gradient, None, None, None, None, None
