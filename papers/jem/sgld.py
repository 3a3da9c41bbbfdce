"""Stochastic gradient Langevin dynamics in image space, and what can be measured on its chains.

x_{k+1} = x_k + alpha d log p(x_k)/dx + sigma N(0, I) (Grathwohl et al., 2020, equation 3 and section 4).

Langevin dynamics leaves p unchanged for small alpha if sigma = sqrt(2 alpha). The authors' code takes alpha = 1 and
sigma = 0.01 instead, which is nearly gradient ascent: the temperature sigma^2 / (2 alpha) is 5e-5. On a quadratic
energy of curvature lambda a step multiplies the deviation by 1 - alpha lambda, so chains are stable only while
alpha lambda < 2, and their variance settles at sigma^2 / (a (2 - a)) with a = alpha lambda.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from papers.jem.energy import Network, log_density, log_density_and_score
from shared.training.device import autocast

#: Called before every move with step, state x (B, ...), log density (B,) and score (B, ...); it must not change them.
Watch = Callable[[int, Tensor, Tensor, Tensor], None]


@dataclass(frozen=True)
class Langevin:
    """How a chain moves; the defaults are the paper's.

    Attributes:
        steps: eta, moves of a chain.
        step_size: alpha, decoupled from the noise.
        noise: sigma, standard deviation of the noise of a move; None matches it to the step, sqrt(2 alpha).
        gradient_clamp: scores are clamped to [-c, c] in each coordinate; None, as in the paper, leaves them.
        sample_clamp: states are clamped to [-c, c] after each move; None, as in the paper, leaves them. Where data
            carry noise past c, the network can tell clamped samples from data by that alone.
    """

    steps: int = 20
    step_size: float = 1.0
    noise: float | None = 0.01
    gradient_clamp: float | None = None
    sample_clamp: float | None = None

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise ValueError(f"the number of steps is not negative, got {self.steps}")
        if not self.step_size > 0:
            raise ValueError(f"the step size is positive, got {self.step_size}")
        if self.noise is not None and not self.noise >= 0:
            raise ValueError(f"the standard deviation of the noise is not negative, got {self.noise}")
        for name, bound in (("gradient_clamp", self.gradient_clamp), ("sample_clamp", self.sample_clamp)):
            if bound is not None and not bound > 0:
                raise ValueError(f"{name} is a positive bound or None, got {bound}")

    @property
    def sigma(self) -> float:
        """Standard deviation of the noise of one move."""
        return math.sqrt(2 * self.step_size) if self.noise is None else self.noise

    @property
    def temperature(self) -> float:
        """sigma^2 / (2 alpha): for small steps the chains sample p^(1 / temperature). 1 for matched noise."""
        return self.sigma**2 / (2 * self.step_size)

    def stationary_variance(self, curvature: float) -> float:
        """Variance of settled chains on the energy `curvature` x^2 / 2: sigma^2 / (a (2 - a)), a = alpha * curvature.

        Infinite where they do not settle: a <= 0 or a >= 2.
        """
        a = self.step_size * curvature
        return self.sigma**2 / (a * (2 - a)) if 0 < a < 2 else math.inf


def chain_generator(sampler_seed: int, step: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator for the chains of one training step, a function of (sampler_seed, step) and of nothing before.

    Its stream is apart from that of `shared.data.batches.seed_step`, whose seeds are odd.
    """
    return torch.Generator(device).manual_seed((sampler_seed * 1_000_003 + step) * 2)


@contextmanager
def still(network: Network) -> Iterator[None]:
    """Inside, a module is in evaluation mode and its parameters are constants; afterwards all is as before.

    With constant parameters a chain keeps only what its own gradient needs. Gradients that parameters hold are kept.
    """
    modules = list(network.modules()) if isinstance(network, nn.Module) else []
    training = [module for module in modules if module.training]
    trainable = [p for module in modules for p in module.parameters(recurse=False) if p.requires_grad]
    try:
        for module in training:
            module.training = False
        for p in trainable:
            p.requires_grad_(False)
        yield
    finally:
        for module in training:
            module.training = True
        for p in trainable:
            p.requires_grad_(True)


def run_chains(
    network: Network,
    start: Tensor,
    langevin: Langevin,
    *,
    labels: Tensor | None = None,
    generator: torch.Generator | None = None,
    precision: str = "float32",
    watch: Watch | None = None,
) -> Tensor:
    """Move a batch of chains by `langevin.steps` steps on LSE f, or on f[y] with labels.

    The network is evaluated once a step, in evaluation mode; its parameters and their gradients are left alone. States
    are kept in the dtype of `start` in either precision: the moves are too small for bfloat16. Images (B, C, H, W) are
    held channels-last. The same generator state, layout and device give the same bits.

    Args:
        network: inputs (B, ...) -> logits (B, K).
        start: (B, ...), left unchanged.
        labels: int64 (B,), the classes whose logits are climbed.
        generator: of the noise, on the device of `start`; the global one by default.
        precision: of the network, "float32" or "bfloat16" (autocast).
        watch: looks at each state before it moves.

    Returns:
        The final states (B, ...), without a graph.
    """
    with still(network), torch.inference_mode(False), torch.no_grad(), autocast(start.device, precision):
        layout = torch.channels_last if start.dim() == 4 else torch.contiguous_format
        x = start.detach().clone(memory_format=layout)
        z = torch.empty_like(x)
        for k in range(langevin.steps):
            value, gradient = log_density_and_score(network, x, labels)
            if watch is not None:
                watch(k, x, value, gradient)
            if langevin.gradient_clamp is not None:
                gradient = gradient.clamp(-langevin.gradient_clamp, langevin.gradient_clamp)
            x.add_(gradient, alpha=langevin.step_size)
            if langevin.sigma > 0:
                x.add_(z.normal_(generator=generator), alpha=langevin.sigma)
            if langevin.sample_clamp is not None:
                x.clamp_(-langevin.sample_clamp, langevin.sample_clamp)
    return x


class Trace(NamedTuple):
    """Chains of B states over T steps, seen before each move."""

    final: Tensor  # (B, ...), after the last move
    log_density: Tensor  # (T, B), unnormalised, nats; the energy is its negative
    gradient_norm: Tensor  # (T, B), ||d log density / dx||_2, before any clamp
    states: Tensor | None  # (T, B, ...) if asked for


def trace_chains(
    network: Network,
    start: Tensor,
    langevin: Langevin,
    *,
    labels: Tensor | None = None,
    generator: torch.Generator | None = None,
    precision: str = "float32",
    keep_states: bool = False,
) -> Trace:
    """`run_chains` with its course: log densities, gradient norms and, if `keep_states`, all states.

    Raises:
        ValueError: a chain without steps, which has no course.
    """
    if langevin.steps < 1:
        raise ValueError("a chain without steps leaves no trace")
    densities: list[Tensor] = []
    norms: list[Tensor] = []
    states: list[Tensor] = []

    def watch(_: int, x: Tensor, value: Tensor, gradient: Tensor) -> None:
        densities.append(value)
        norms.append(torch.linalg.vector_norm(gradient.flatten(1), dim=1))
        if keep_states:
            states.append(x.clone())

    final = run_chains(network, start, langevin, labels=labels, generator=generator, precision=precision, watch=watch)
    return Trace(final, torch.stack(densities), torch.stack(norms), torch.stack(states) if keep_states else None)


def autocorrelation(states: Tensor, lags: int) -> Tensor:
    """Autocorrelation (lags + 1,) of stationary chains at the lags 0, 1, .., `lags`; 1 at lag 0.

    Deviations are from the mean over all chains and steps, so chains that each stay in a mode of their own remain
    correlated for ever, as they should. Averages run over chains and coordinates.

    Args:
        states: (T, B, ...).

    Raises:
        ValueError: fewer than `lags` + 2 steps, or states that do not vary.
    """
    length = len(states)
    if not 0 <= lags <= length - 2:
        raise ValueError(f"{length} steps have no {lags} lags")
    flat = states.reshape(length, states.shape[1], -1).double()
    deviation = flat - flat.mean((0, 1))
    products = [(deviation[: length - lag] * deviation[lag:]).mean() for lag in range(lags + 1)]
    if not products[0] > 0:
        raise ValueError("the states do not vary, an autocorrelation is not defined")
    return torch.stack(products) / products[0]


def largest_curvature(
    network: Network,
    x: Tensor,
    labels: Tensor | None = None,
    *,
    iterations: int = 20,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Largest eigenvalue (B,) of the Hessian of the energy at each x, by power iteration on Hessian-vector products.

    Times the step size it has to stay below 2, or chains move away from x. Power iteration finds the eigenvalue of
    largest size; where that one is negative, a second run on the Hessian shifted by its size finds the largest one.
    The value is a Rayleigh quotient, so it is a lower bound at any number of iterations. The network is evaluated once.

    Args:
        network: twice differentiable in x (Swish, not ReLU); compute it in float32.
        x: (B, ...).
        labels: for the energy -f(x)[y].
        iterations: Hessian-vector products of each run.
        generator: of the first directions, on the device of `x`.
    """
    with still(network), torch.inference_mode(False), torch.enable_grad():
        leaf = x.detach().clone().requires_grad_()
        total = -log_density(network(leaf), labels).sum()
        (gradient,) = torch.autograd.grad(total, leaf, create_graph=True)
        if not gradient.requires_grad:  # a linear energy
            return torch.zeros_like(gradient.flatten(1)[:, 0])

        def hessian_times(v: Tensor) -> Tensor:
            v = v.view_as(leaf)
            (product,) = torch.autograd.grad(gradient, leaf, v, retain_graph=True, materialize_grads=True)
            return product.flatten(1)

        v = torch.empty_like(leaf, requires_grad=False).normal_(generator=generator).flatten(1)
        dominant = _power_iteration(hessian_times, v, iterations, torch.zeros_like(v[:, :1]))
        if bool((dominant > 0).all()):
            return dominant
        shift = dominant.abs()[:, None]
        return torch.maximum(dominant, _power_iteration(hessian_times, v, iterations, shift))


def _power_iteration(hessian_times: Callable[[Tensor], Tensor], v: Tensor, iterations: int, shift: Tensor) -> Tensor:
    """Rayleigh quotient (B,) of the Hessian after power iteration on Hessian + shift, from directions v (B, D)."""
    v = torch.nn.functional.normalize(v, dim=1)
    quotient = torch.zeros_like(v[:, 0])
    for _ in range(iterations):
        product = hessian_times(v)
        quotient = (v * product).sum(1)
        v = torch.nn.functional.normalize(product + shift * v, dim=1)
    return quotient


@dataclass
class Passes:
    """Evaluations of a network."""

    calls: int = 0
    examples: int = 0


@contextmanager
def count_passes(network: nn.Module) -> Iterator[Passes]:
    """Count the forward passes of a module: eta of the chains and 3 of the losses in one training step of the paper."""
    passes = Passes()

    def count(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        passes.calls += 1
        passes.examples += len(inputs[0])

    handle = network.register_forward_pre_hook(count)
    try:
        yield passes
    finally:
        handle.remove()
