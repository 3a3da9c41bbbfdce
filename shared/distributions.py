"""Densities, divergences and samplers that several papers use; every log-probability is in nats."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


def soft_clamp(a: Tensor, bound: float = 5.0) -> Tensor:
    """`bound * tanh(a / bound)`: the identity near 0, never past `bound` (NVAE's code; slope 1 at 0)."""
    return torch.tanh(a / bound) * bound


@dataclass(frozen=True)
class Normal:
    """A factorial Normal with mean `mu` and standard deviation `sigma`, tensors of one shape."""

    mu: Tensor
    sigma: Tensor

    @classmethod
    def clamped(cls, mu: Tensor, log_sigma: Tensor, floor: float = 0.01) -> "Normal":
        """`mu` and `log_sigma` through the soft clamp, and `sigma = exp(log_sigma) + floor` (NVAE's code).

        With `log_sigma = 0` the standard deviation is 1.01, so the "standard" prior of the first group is not quite 1.
        """
        return cls(soft_clamp(mu.float()), soft_clamp(log_sigma.float()).exp() + floor)

    def at_temperature(self, temperature: float) -> "Normal":
        """The same mean with `sigma * temperature`; 0 makes the sampling deterministic."""
        return Normal(self.mu, self.sigma * temperature)

    def sample(self, noise: Tensor) -> Tensor:
        """`mu + sigma * noise`, differentiable in both parameters; `noise` is standard normal."""
        return torch.addcmul(self.mu, self.sigma, noise)

    def log_prob(self, z: Tensor) -> Tensor:
        """Log-density of each element of `z`, in nats."""
        return -0.5 * ((z - self.mu) / self.sigma).square() - self.sigma.log() - 0.5 * math.log(2 * math.pi)

    def kl(self, other: "Normal") -> Tensor:
        """KL(self || other) of each element, in nats (NVAE, equation 2, with effective parameters)."""
        ratio = self.sigma / other.sigma
        shift = (self.mu - other.mu) / other.sigma
        return 0.5 * (shift.square() + ratio.square()) - 0.5 - ratio.log()


def residual_kl(delta_mu: Tensor, delta_sigma: Tensor, sigma: Tensor) -> Tensor:
    """KL of `N(mu + delta_mu, sigma * delta_sigma)` from `N(mu, sigma)`, elementwise, in nats (NVAE, equation 2)."""
    return 0.5 * ((delta_mu / sigma).square() + delta_sigma.square() - delta_sigma.square().log() - 1)


def bernoulli_log_prob(logits: Tensor, x: Tensor) -> Tensor:
    """Log-probability of binary `x` under `sigmoid(logits)`, elementwise, in nats, in float32."""
    return -F.binary_cross_entropy_with_logits(logits.float(), x, reduction="none")


@dataclass(frozen=True)
class DiscretisedLogisticMixture:
    """Mixture of discretised logistics over RGB pixels, channels in the order R, G, B given the earlier ones.

    Values lie on a grid of `2**bits` points in [-1, 1]. `logits` (B, M, H, W); `means`, `log_scales` and
    `coefficients` (B, M, 3, H, W) hold for each component the means, the log-scales (>= -7) and the three
    coefficients of the channel regression.

    Reference: Salimans et al., PixelCNN++ (2017), section 2.1. The edge bins are tested half a bin from the edge: the
    widespread test `x > 0.99` also catches the value 254 of 8-bit images, and the masses then sum to more than 1.
    """

    logits: Tensor
    means: Tensor
    log_scales: Tensor
    coefficients: Tensor
    bits: int = 8

    @classmethod
    def from_parameters(cls, parameters: Tensor, components: int, bits: int = 8) -> "DiscretisedLogisticMixture":
        """Split a network's output (B, 10 * components, H, W).

        Raises:
            ValueError: the number of channels is not `10 * components`.
        """
        batch, channels, height, width = parameters.shape
        if channels != 10 * components:
            raise ValueError(f"a mixture of {components} needs {10 * components} channels, got {channels}")
        parameters = parameters.float()
        rest = parameters[:, components:].reshape(batch, 3, components, 3, height, width)
        return cls(parameters[:, :components], rest[:, 0], rest[:, 1].clamp(min=-7.0), torch.tanh(rest[:, 2]), bits)

    def _conditional_means(self, x: Tensor) -> Tensor:
        """Means (B, M, 3, H, W) given the true values `x` (B, 3, H, W) of the earlier channels."""
        x = x.unsqueeze(1)
        red, green = x[:, :, 0], x[:, :, 1]
        c = self.coefficients
        mean_green = self.means[:, :, 1] + c[:, :, 0] * red
        mean_blue = self.means[:, :, 2] + c[:, :, 1] * red + c[:, :, 2] * green
        return torch.stack([self.means[:, :, 0], mean_green, mean_blue], dim=2)

    def component_log_prob(self, x: Tensor) -> Tensor:
        """Log-mass of each channel under each component (B, M, 3, H, W) for `x` (B, 3, H, W) on the grid in [-1, 1]."""
        half_bin = 1.0 / (2**self.bits - 1)
        centred = x.unsqueeze(1) - self._conditional_means(x)
        inverse_scale = torch.exp(-self.log_scales)
        upper, lower = (centred + half_bin) * inverse_scale, (centred - half_bin) * inverse_scale
        # sigmoid(u) - sigmoid(l) = sigmoid(u) * sigmoid(-l) * (1 - exp(l - u)): exact in the tails, no fallback.
        log_mass = F.logsigmoid(upper) + F.logsigmoid(-lower) + torch.log(-torch.expm1(lower - upper))
        value = x.unsqueeze(1).expand_as(centred)
        log_mass = torch.where(value < -1 + half_bin, F.logsigmoid(upper), log_mass)
        return torch.where(value > 1 - half_bin, F.logsigmoid(-lower), log_mass)

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-probability of each pixel, nats, (B, H, W), for `x` (B, 3, H, W) on the grid in [-1, 1]."""
        joint = self.component_log_prob(x).sum(2) + F.log_softmax(self.logits, dim=1)
        return torch.logsumexp(joint, dim=1)

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """Draw images (B, 3, H, W) on the grid in [-1, 1]."""
        shape, device = self.logits.shape, self.logits.device
        uniform = torch.rand(shape, generator=generator, device=device).clamp(1e-6, 1 - 1e-6)
        chosen = (self.logits - torch.log(-torch.log(uniform))).argmax(1, keepdim=True)  # Gumbel-max
        index = chosen.unsqueeze(2).expand(-1, 1, 3, -1, -1)
        means, log_scales, c = (t.gather(1, index).squeeze(1) for t in (self.means, self.log_scales, self.coefficients))
        u = torch.rand(means.shape, generator=generator, device=device).clamp(1e-6, 1 - 1e-6)
        noise = log_scales.exp() * (torch.log(u) - torch.log1p(-u))
        red = self._to_grid(means[:, 0] + noise[:, 0])
        green = self._to_grid(means[:, 1] + c[:, 0] * red + noise[:, 1])
        blue = self._to_grid(means[:, 2] + c[:, 1] * red + c[:, 2] * green + noise[:, 2])
        return torch.stack([red, green, blue], dim=1)

    def _to_grid(self, x: Tensor) -> Tensor:
        steps = 2**self.bits - 1
        on_grid: Tensor = ((x.clamp(-1, 1) + 1) * (steps / 2)).round() * (2 / steps) - 1
        return on_grid
