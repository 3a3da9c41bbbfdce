"""Random utilities U of a stochastic argmax trick (Paulus et al., 2020, section 3) and their densities.

Each coordinate has one parameter theta and is independent of the others. All laws are reparameterised, U = g(theta, Z)
with standard noise Z, so that a gradient passes through a relaxation of the maximiser back to theta:

- `gumbel`: U = theta + G, with G = -log E and E a standard exponential variable;
- `negative_exponential`: U = -E exp(-theta), minus an exponential variable of rate exp(theta). It is the increasing
  function -exp(-u) of the Gumbel utility: whatever looks at the order alone has the same law under both;
- `gaussian`: U = theta + Z.

Tensors have the shape (..., n) unless something else is said; log-densities and divergences are in nats.
"""

import math
from typing import Literal

import torch
from torch import Tensor

Law = Literal["gumbel", "negative_exponential", "gaussian"]


def draw_noise(theta: Tensor, law: Law, samples: int | None = None, generator: torch.Generator | None = None) -> Tensor:
    """Standard noise for `reparameterise`, of shape (samples, *theta.shape), without `samples` that of theta.

    Dtype and device are those of theta. Given to several calls it makes their randomness common; `gumbel` and
    `negative_exponential` draw the same waiting times from the same state of the generator.

    Raises:
        ValueError: `law` is no law of this module.
    """
    shape = theta.shape if samples is None else (samples, *theta.shape)
    empty = torch.empty(shape, dtype=theta.dtype, device=theta.device)
    if law == "gaussian":
        return empty.normal_(generator=generator)
    # A waiting time of 0, which rounding can make, would be an infinite Gumbel variable.
    waiting = empty.exponential_(generator=generator).clamp_min_(torch.finfo(theta.dtype).tiny)
    if law == "gumbel":
        return waiting.log_().neg_()
    if law == "negative_exponential":
        return waiting.neg_()
    raise _unknown(law)


def reparameterise(theta: Tensor, noise: Tensor, law: Law) -> Tensor:
    """The utilities of `law` with the parameters `theta`, from `noise` that broadcasts with them; differentiable."""
    return noise * torch.exp(-theta) if law == "negative_exponential" else theta + noise


def sample(theta: Tensor, law: Law, samples: int | None = None, generator: torch.Generator | None = None) -> Tensor:
    """Utilities (samples, ..., n), without `samples` (..., n), differentiable in theta."""
    return reparameterise(theta, draw_noise(theta, law, samples, generator), law)


def log_density(utilities: Tensor, theta: Tensor, law: Law) -> Tensor:
    """The log-density of each utility, in nats: -inf for a positive utility of law `negative_exponential`.

    Differentiated in theta, with detached utilities, it is the score of REINFORCE on utilities.

    Raises:
        ValueError: `law` is no law of this module.
    """
    if law == "gumbel":
        standard = utilities - theta
        return -standard - torch.exp(-standard)
    if law == "gaussian":
        return -0.5 * (utilities - theta).square() - 0.5 * math.log(2 * math.pi)
    if law == "negative_exponential":
        return torch.where(utilities > 0, -torch.inf, theta + utilities * torch.exp(theta))
    raise _unknown(law)


def divergence(theta: Tensor, law: Law, prior: float | Tensor = 0.0) -> Tensor:
    """KL(p_theta || p_prior) of each utility, in nats, 0 at theta = prior.

    With d = theta - prior it is d + exp(-d) - 1 for Gumbel utilities and for negative exponential ones, as divergences
    do not change under the increasing function between them, and d^2 / 2 for Gaussian ones. By the data-processing
    inequality it is an upper bound of the divergence between the laws of the maximisers.

    Raises:
        ValueError: `law` is no law of this module.
    """
    shift = theta - prior
    if law in ("gumbel", "negative_exponential"):
        # expm1 keeps the digits of small divergences; far below the prior the term grows exponentially.
        return shift + torch.expm1(-shift)
    if law == "gaussian":
        return 0.5 * shift.square()
    raise _unknown(law)


def total_divergence(theta: Tensor, law: Law, doubled: bool = False, prior: float | Tensor = 0.0) -> Tensor:
    """KL of all utilities of an instance, (..., n) -> (...), in nats.

    Args:
        doubled: undirected edges, whose logits are the same in both directions, are counted once for each direction, as
            the authors' code does. Each has one utility, so that the bound holds with the single count; the doubled one
            is looser by the same amount again.
    """
    return divergence(theta, law, prior).sum(-1) * (2 if doubled else 1)


def total_log_density(utilities: Tensor, theta: Tensor, law: Law, doubled: bool = False) -> Tensor:
    """Log-density of all utilities of an instance, (...), in nats; `doubled` as in `total_divergence`.

    With the doubled count the score, and the gradient of REINFORCE with it, is twice what it should be.
    """
    return log_density(utilities, theta, law).sum(-1) * (2 if doubled else 1)


def plackett_luce_log_prob(order: Tensor, theta: Tensor) -> Tensor:
    """Log-probability (...), in nats, that the largest Gumbel utilities are those of `order`, best first.

    By the lack of memory of the waiting times each next winner has the probability softmax(theta) among the items that
    are left. It is that of negative exponential utilities, too. With a complete order
    of the k best it is the score of the discrete trace (Struminsky et al., Leveraging recursive gumbel-max trick for
    approximate inference in combinatorial spaces, 2021).

    Args:
        order: (..., k) indices, int64, without repetition.
        theta: (..., n) with k <= n.
    """
    total = theta.new_zeros(order.shape[:-1])
    left = theta
    for winner in order.unsqueeze(-1).unbind(-2):
        total = total + left.log_softmax(-1).gather(-1, winner).squeeze(-1)
        left = left.scatter(-1, winner, -torch.inf)
    return total


def conditional_gumbel(theta: Tensor, order: Tensor, noise: Tensor) -> Tensor:
    """Gumbel utilities given that the largest ones are those of `order`, best first: (..., n), differentiable in theta.

    With waiting times exp(-U): the winner's is exponential with the sum of the rates exp(theta) of all items, each next
    one adds an exponential time with the sum of those that are left, and after the last winner the other clocks start
    again. RELAX needs it (Grathwohl et al., Backpropagation through the void, 2018, section 3.2, for one winner).

    Args:
        theta: (..., n) parameters.
        order: (..., k) indices of the k <= n largest utilities, int64, best first.
        noise: (..., n) standard Gumbel noise, independent of what gave the order.
    """
    log_waiting, left = -noise, theta
    log_now = torch.full_like(theta[..., :1], -torch.inf)  # the time of the last winner
    winners: list[Tensor] = []
    for winner in order.unsqueeze(-1).unbind(-2):
        step = log_waiting.gather(-1, winner) - left.logsumexp(-1, keepdim=True)
        log_now = torch.logaddexp(log_now, step) if winners else step
        winners.append(log_now)
        left = left.scatter(-1, winner, -torch.inf)
    others = torch.logaddexp(log_now, log_waiting - theta) if winners else log_waiting - theta
    return -others.scatter(-1, order, torch.cat(winners, -1)) if winners else -others


def _unknown(law: str) -> ValueError:
    return ValueError(f"{law!r} is no law of utilities: gumbel, negative_exponential, gaussian")
