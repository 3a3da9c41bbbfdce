"""A small normalising flow: the exact density that table 3 of Grathwohl et al. (2020) compares with, Glow in small.

Each step is an actnorm, an invertible 1x1 convolution and an affine coupling (Kingma & Dhariwal, 2018, table 1). A
level gathers 2 x 2 pixels into channels, takes its steps, and the first hands half of its channels to the Gaussian base
before the second. Sizes: images (B, C, H, W) with H = W divisible by 4, codes (B, C H W). Densities are in nats, of
images on the scale [-1, 1].
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.errors import UserError
from shared.training.device import autocast

#: The logarithm of a coupling's scale stays within +-BOUND: one step cannot blow up an unfamiliar image.
BOUND = 3.0
GREY_LEVELS = 256
#: Images enter on a logit scale (Dinh et al., 2017), cut off by this share at both ends. Glow takes them as they are,
#: but then many steps go into one thing: half of the pixels of Fashion-MNIST are black, a 256th of the scale.
EDGE = 0.002


def bits_per_dim(log_prob: Tensor, dims: int) -> Tensor:
    """Bits for each of `dims` values of an image of 256 levels, from log densities (B,) in nats on the scale [-1, 1].

    A level is an interval of length 2 / 256: its probability is the mean density there times 1 / 128. So the bits of
    images with noise bound from above those of their levels (Theis et al., 2016). The uniform density needs 8 bits.
    """
    return (-log_prob / dims + math.log(GREY_LEVELS / 2)) / math.log(2)


def dequantise(images: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Images (B, C, H, W) in [-1, 1] rounded to 256 levels, plus uniform noise over a level: values fill [-1, 1).

    The density of a set on few points is unbounded; with the noise it bounds the probability of the levels. Images
    that are no levels, as means of two, are rounded, or the missing grain alone would tell them apart.
    """
    level = ((images + 1) * ((GREY_LEVELS - 1) / 2)).round().clamp(0, GREY_LEVELS - 1)
    noise = torch.rand(images.shape, generator=generator, device=images.device, dtype=images.dtype)
    return (level + noise) * (2 / GREY_LEVELS) - 1


def levels_of(x: Tensor) -> Tensor:
    """The levels uint8 in which values on the scale [-1, 1) lie, cut at both ends: undoes `dequantise`."""
    return ((x + 1) * (GREY_LEVELS / 2)).floor().clamp(0, GREY_LEVELS - 1).to(torch.uint8)


def to_logits(x: Tensor) -> tuple[Tensor, Tensor]:
    """logit(EDGE + (1 - 2 EDGE) (x + 1) / 2) and its log-determinants (B,), for x (B, ...) in [-1, 1]."""
    share = EDGE + (0.5 - EDGE) * (x + 1)
    change = math.log(0.5 - EDGE) - share.log() - (1 - share).log()
    return torch.logit(share), change.flatten(1).sum(1)


def from_logits(y: Tensor) -> Tensor:
    """x, which lies within about 2 EDGE of [-1, 1]."""
    return (torch.sigmoid(y) - EDGE) / (0.5 - EDGE) - 1


class ActNorm(nn.Module):
    """(x + shift) exp(log_scale) a channel: the identity until `initialise` gives a batch mean 0, variance 1."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(channels, 1, 1))
        self.log_scale = nn.Parameter(torch.zeros(channels, 1, 1))

    @torch.no_grad()
    def initialise(self, x: Tensor) -> None:
        """Take shift and scale from a batch (B, C, H, W)."""
        variance, mean = torch.var_mean(x, (0, 2, 3), correction=0)
        self.shift.copy_(-mean[:, None, None])
        self.log_scale.copy_(-0.5 * variance.clamp_min(1e-6).log()[:, None, None])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Values, and the log-determinant () that all images share."""
        return (x + self.shift) * self.log_scale.exp(), self.log_scale.sum() * x[0, 0].numel()

    def inverse(self, y: Tensor) -> Tensor:
        """x."""
        return y * (-self.log_scale).exp() - self.shift


class InvertibleMixing(nn.Module):
    """1x1 convolution by P L (U + diag(s)) (equation 10 of Glow), whose determinant is cheap; starts as a rotation."""

    permutation: Tensor
    signs: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        rotation = torch.linalg.qr(torch.randn(channels, channels)).Q
        permutation, lower, upper = torch.linalg.lu(rotation)
        self.register_buffer("permutation", permutation)
        self.register_buffer("signs", upper.diagonal().sign())
        self.log_scale = nn.Parameter(upper.diagonal().abs().log())
        self.lower = nn.Parameter(lower.tril(-1))
        self.upper = nn.Parameter(upper.triu(1))

    def matrix(self) -> Tensor:
        """(C, C)."""
        lower = self.lower.tril(-1) + torch.eye(len(self.signs), dtype=self.lower.dtype, device=self.lower.device)
        return self.permutation @ lower @ (self.upper.triu(1) + torch.diag(self.signs * self.log_scale.exp()))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Values, and the log-determinant ()."""
        return F.conv2d(x, self.matrix()[:, :, None, None]), self.log_scale.sum() * x[0, 0].numel()

    def inverse(self, y: Tensor) -> Tensor:
        """x."""
        return F.conv2d(y, torch.linalg.inv(self.matrix())[:, :, None, None])


class AffineCoupling(nn.Module):
    """The second channels become x2 exp(s(x1)) + t(x1), the first stay; a step's coupling and the base's.

    s is within +-BOUND. The last convolution starts at zero, so the coupling starts as the identity.
    """

    def __init__(self, kept: int, changed: int, hidden: int) -> None:
        super().__init__()
        self.kept = kept
        self.first = nn.Conv2d(kept, hidden, 3, padding=1)
        self.middle = nn.Conv2d(hidden, hidden, 1)
        self.last = nn.Conv2d(hidden, 2 * changed, 3, padding=1)
        nn.init.zeros_(self.last.weight)
        assert self.last.bias is not None
        nn.init.zeros_(self.last.bias)

    def scale_and_shift(self, x1: Tensor, precision: str) -> tuple[Tensor, Tensor]:
        """s and t, each of the shape of x2, in the dtype of x1."""
        with autocast(x1.device, precision):
            h = F.relu(self.first(x1.contiguous(memory_format=torch.channels_last)))
            s, t = self.last(F.relu(self.middle(h))).chunk(2, 1)
        return BOUND * torch.tanh(s.to(x1.dtype) / BOUND), t.to(x1.dtype)

    def forward(self, x: Tensor, precision: str = "float32") -> tuple[Tensor, Tensor]:
        """Values, and log-determinants (B,)."""
        x1, x2 = x[:, : self.kept], x[:, self.kept :]
        s, t = self.scale_and_shift(x1, precision)
        return torch.cat([x1, x2 * s.exp() + t], 1), s.flatten(1).sum(1)

    def inverse(self, y: Tensor) -> Tensor:
        """x."""
        x1, y2 = y[:, : self.kept], y[:, self.kept :]
        s, t = self.scale_and_shift(x1, "float32")
        return torch.cat([x1, (y2 - t) * (-s).exp()], 1)


class FlowStep(nn.Module):
    """Actnorm, 1x1 convolution, affine coupling."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.norm = ActNorm(channels)
        self.mixing = InvertibleMixing(channels)
        self.coupling = AffineCoupling(channels // 2, channels - channels // 2, hidden)

    def forward(self, x: Tensor, precision: str = "float32") -> tuple[Tensor, Tensor]:
        """Values, and log-determinants (B,)."""
        x, of_norm = self.norm(x)
        x, of_mixing = self.mixing(x)
        x, of_coupling = self.coupling(x, precision)
        return x, of_norm + of_mixing + of_coupling

    def inverse(self, y: Tensor) -> Tensor:
        """x."""
        return self.norm.inverse(self.mixing.inverse(self.coupling.inverse(y)))


class Level(nn.Module):
    """Some steps on values (B, channels, H, W)."""

    def __init__(self, channels: int, hidden: int, steps: int) -> None:
        super().__init__()
        self.steps = [FlowStep(channels, hidden) for _ in range(steps)]
        for number, step in enumerate(self.steps):
            self.add_module(f"step{number}", step)

    def forward(self, x: Tensor, precision: str = "float32") -> tuple[Tensor, Tensor]:
        """Values, and log-determinants (B,)."""
        found = x.new_zeros(len(x))
        for step in self.steps:
            x, change = step(x, precision)
            found = found + change
        return x, found

    def inverse(self, y: Tensor) -> Tensor:
        """x."""
        for step in reversed(self.steps):
            y = step.inverse(y)
        return y

    def initialise(self, x: Tensor) -> Tensor:
        """Set each actnorm by a batch (B, channels, H, W) as it reaches it; the values at the end."""
        for step in self.steps:
            step.norm.initialise(x)
            x, _ = step(x)
        return x


class Flow(nn.Module):
    """Density of images (B, C, side, side) in [-1, 1]: an invertible map to a standard Gaussian in C side^2 dimensions.

    Args:
        channels: colours of the images.
        side: pixels along a side.
        steps: of the first and of the second level.
        hidden: channels inside the couplings of each level.

    Raises:
        UserError: the side is not divisible by 4.
    """

    def __init__(
        self, channels: int, side: int, steps: tuple[int, int] = (8, 4), hidden: tuple[int, int] = (32, 64)
    ) -> None:
        super().__init__()
        if side % 4 or side < 4:
            raise UserError(f"the flow halves an image twice: a side of {side} pixels is not divisible by 4")
        self.shape = (channels, side, side)
        self.kept = 2 * channels  # that go on to the second level
        self.first = Level(4 * channels, hidden[0], steps[0])
        self.base = AffineCoupling(self.kept, self.kept, hidden[0])  # the Gaussian of one half, given the other
        self.second = Level(4 * self.kept, hidden[1], steps[1])
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @property
    def dims(self) -> int:
        """Values of an image."""
        return math.prod(self.shape)

    def forward(self, x: Tensor, precision: str = "float32") -> tuple[Tensor, Tensor]:
        """Codes (B, C side^2), standard Gaussian for images of the model, and log |det dz/dx| (B,).

        Args:
            precision: of the couplings' networks, "float32" or "bfloat16"; all else stays in the dtype of `x`.
        """
        y, of_scale = to_logits(x)
        z, log_determinant = self.codes_of_logits(y, precision)
        return z, of_scale + log_determinant

    def codes_of_logits(self, y: Tensor, precision: str = "float32") -> tuple[Tensor, Tensor]:
        """As `forward`, of images on the logit scale: codes, and log |det dz/dy| (B,)."""
        y, of_first = self.first(F.pixel_unshuffle(y, 2), precision)
        y, of_base = self.base(y, precision)
        z = y[:, self.kept :]
        y, of_second = self.second(F.pixel_unshuffle(y[:, : self.kept], 2), precision)
        return torch.cat([y.flatten(1), z.flatten(1)], 1), of_first + of_base + of_second

    def inverse(self, z: Tensor) -> Tensor:
        """Images (B, C, side, side) of codes (B, C side^2)."""
        half, quarter = self.shape[1] // 2, self.shape[1] // 4
        x, rest = z.split(self.kept * half**2, 1)
        x = self.second.inverse(x.reshape(-1, 4 * self.kept, quarter, quarter))
        x = torch.cat([F.pixel_shuffle(x, 2), rest.reshape(-1, self.kept, half, half)], 1)
        return from_logits(F.pixel_shuffle(self.first.inverse(self.base.inverse(x)), 2))

    def log_prob(self, x: Tensor, precision: str = "float32") -> Tensor:
        """log p(x) (B,) in nats of images in [-1, 1]: the log density of their codes plus the log-determinant."""
        y, of_scale = to_logits(x)
        return self.log_prob_of_logits(y, precision) + of_scale

    def log_prob_of_logits(self, y: Tensor, precision: str = "float32") -> Tensor:
        """log p(y) (B,) in nats of images y on the logit scale, with respect to that scale."""
        z, log_determinant = self.codes_of_logits(y, precision)
        return log_determinant - 0.5 * (z.square().sum(1) + self.dims * math.log(2 * math.pi))

    @torch.no_grad()
    def sample(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """Images (count, C, side, side), not cut to [-1, 1]."""
        device = self.base.first.weight.device
        return self.inverse(torch.randn(count, self.dims, generator=generator, device=device))

    @torch.no_grad()
    def initialise(self, x: Tensor) -> None:
        """Set each actnorm by what images (B, C, side, side) are when they reach it."""
        x, _ = self.base(self.first.initialise(F.pixel_unshuffle(to_logits(x)[0], 2)))
        self.second.initialise(F.pixel_unshuffle(x[:, : self.kept], 2))
