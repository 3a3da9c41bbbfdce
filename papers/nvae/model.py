"""The networks of NVAE (Vahdat & Kautz, 2020, sections 3.1 and 3.2), bottom-up; tensors are (B, C, H, W).

A bottom-up encoder leaves one feature map for each latent group. A top-down decoder, shared by inference and
generation, runs from a learned constant through the groups, coarsest first: at each it offers the prior, receives a
latent, and mixes it in.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from papers.nvae.cells import conv, decoder_cell, encoder_cell, post_cell
from papers.nvae.flows import flow_stack
from papers.nvae.settings import Settings
from shared.distributions import Normal
from shared.training.distributed import standard_normal_like


@dataclass(frozen=True)
class Inference:
    """One pass with latents from the posterior. Lists run over the groups, coarsest first."""

    logits: Tensor  # parameters of p(x | z)
    latents: list[Tensor]
    kl_nats: list[Tensor]  # (B,) each
    log_ratio_nats: Tensor | None  # (B,), log p(z) - log q(z | x) of the drawn latents, if it was asked for


class Encoder(nn.Module):
    """Stem, pre-processing and the bottom-up tower; gives one map a group, coarsest first."""

    def __init__(self, settings: Settings, image_channels: int) -> None:
        super().__init__()
        c = settings.channels
        fold = settings.fold
        self.stem = nn.Sequential(nn.PixelUnshuffle(fold), conv(fold**2 * image_channels, c, 3, settings))
        self.pre = nn.ModuleList()
        for _ in range(settings.pre_post[0]):
            self.pre.extend(encoder_cell(c, c, "same", settings) for _ in range(settings.pre_post[1] - 1))
            self.pre.append(encoder_cell(c, 2 * c, "down", settings))
            c *= 2
        self.tower = nn.ModuleList()  # one entry a group, finest first; a `down` cell opens each coarser scale
        self.single = settings.groups_per_scale == (1,)
        for scale, groups in enumerate(settings.groups_per_scale):
            for group in range(groups if not self.single else 0):
                cells = nn.Sequential()
                if scale > 0 and group == 0:
                    cells.append(encoder_cell(c, 2 * c, "down", settings))
                    c *= 2
                cells.extend(encoder_cell(c, c, "same", settings) for _ in range(settings.cells_per_group[0]))
                self.tower.append(cells)
        self.top = nn.Sequential(nn.ELU(), conv(c, c, 1, settings), nn.ELU())

    def forward(self, x: Tensor) -> list[Tensor]:
        s = self.stem(x)
        for cell in self.pre:
            s = cell(s)
        maps = []
        for cells in self.tower:
            s = cells(s)
            maps.append(s)
        # The topmost map meets no top-down state: it has a small head of its own.
        return [self.top(s), *reversed(maps[:-1])]


class Group(nn.Module):
    """One latent group of the top-down path: decoder cells, prior, posterior, and the mixing-in of the latent.

    With `up` it begins a finer scale: its input has half the `side` of its latents.
    """

    def __init__(self, settings: Settings, c_in: int, c: int, side: int, first: bool, up: bool) -> None:
        super().__init__()
        z = settings.latent_channels
        self.residual = settings.residual_posterior
        self.cells = nn.Sequential()
        if up:
            self.cells.append(decoder_cell(c_in, c, "up", settings, side // 2))
        if not first:
            self.cells.extend(decoder_cell(c, c, "same", settings) for _ in range(settings.cells_per_group[1]))
            self.prior_head = nn.Sequential(nn.ELU(), conv(c, 2 * z, 1, settings))
            self.combine_encoder = conv(c, c, 1, settings)
        self.first = first
        self.posterior_head = conv(c, 2 * z, 3, settings)
        self.flows = flow_stack(z, settings.flows)
        self.combine_latent = conv(c + z, c, 1, settings)
        self.latent_channels = z

    def prior(self, s: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log standard deviation of p(z_l | z_<l) before the soft clamp; zeros for the first group."""
        if self.first:
            zeros = torch.zeros((s.shape[0], self.latent_channels, *s.shape[2:]), device=s.device)
            return zeros, zeros
        mu, log_sigma = self.prior_head(s).chunk(2, dim=1)
        return mu.float(), log_sigma.float()

    def posterior(self, s: Tensor, encoded: Tensor, prior: tuple[Tensor, Tensor]) -> Normal:
        """q(z_l | z_<l, x), relative to the prior if residual (section 3.2): the clamp acts on the sum."""
        f = encoded if self.first else encoded + self.combine_encoder(s)
        mu, log_sigma = (part.float() for part in self.posterior_head(f).chunk(2, dim=1))
        if self.residual:
            mu, log_sigma = prior[0] + mu, prior[1] + log_sigma
        return Normal.clamped(mu, log_sigma)

    def mix(self, s: Tensor, z: Tensor) -> Tensor:
        """The state after the group: a 1x1 convolution over the state and the latent."""
        return self.combine_latent(torch.cat([s, z.to(s.dtype)], dim=1))  # type: ignore[no-any-return]


# Draws the latent of group l from its state and prior parameters.
Draw = Callable[[int, Group, Tensor, tuple[Tensor, Tensor]], Tensor]


class NVAE(nn.Module):
    """The whole model.

    Args:
        settings: sizes and options.
        image_channels: 1 for binary MNIST, 3 for RGB.
        side: height and width of the (padded) images, divisible by `fold * 2 ** (pre blocks + scales - 1)`.

    Raises:
        ValueError: `side` cannot be halved that often.
    """

    def __init__(self, settings: Settings, image_channels: int, side: int) -> None:
        super().__init__()
        per_scale = settings.groups_per_scale
        halvings = settings.pre_post[0] + len(per_scale) - 1
        if side % (settings.fold * 2**halvings):
            raise ValueError(f"images of side {side}, folded by {settings.fold}, cannot be halved {halvings} times")
        side //= settings.fold
        self.encoder = Encoder(settings, image_channels)
        c = settings.channels * 2**halvings
        side >>= halvings
        self.latent_shapes: list[tuple[int, int, int]] = []  # of each group, coarsest first
        self.single = self.encoder.single
        self.start = nn.Parameter(torch.rand(1, c, side, side))
        self.groups = nn.ModuleList()
        for scale, count in enumerate(reversed(per_scale)):  # coarsest first
            self.latent_shapes += [(settings.latent_channels, side, side)] * count
            for index in range(count):
                up = scale > 0 and index == 0
                self.groups.append(Group(settings, 2 * c if up else c, c, side, first=len(self.groups) == 0, up=up))
            c, side = c // 2, 2 * side
        c, side = 2 * c, side // 2
        self.post = nn.Sequential()
        for _ in range(settings.pre_post[0]):
            self.post.append(post_cell(c, c // 2, "up", settings, side))
            self.post.extend(post_cell(c // 2, c // 2, "same", settings) for _ in range(settings.pre_post[1] - 1))
            c, side = c // 2, 2 * side
        out = 1 if image_channels == 1 else 10 * settings.mixture_components
        self.head = nn.Sequential(
            nn.ELU(), conv(c, settings.fold**2 * out, 3, settings), nn.PixelShuffle(settings.fold)
        )

    def _top_down(self, batch: int, draw: Draw) -> Tensor:
        s = self.start.expand(batch, -1, -1, -1)
        for index, group in enumerate(self.groups):
            assert isinstance(group, Group)
            s = group.cells(s)
            s = group.mix(s, draw(index, group, s, group.prior(s)))
        return self.head(self.post(s)).float()  # type: ignore[no-any-return]

    def noise(self, batch: int) -> list[Tensor]:
        """Standard normal noise for one draw of all latents, (batch, z, h, w) for each group, coarsest first."""
        return [standard_normal_like(self.start.detach().new_empty((batch, *shape))) for shape in self.latent_shapes]

    def infer(
        self, encoded: list[Tensor], noise: list[Tensor] | None = None, from_prior: int = 0, log_ratio: bool = False
    ) -> Inference:
        """Draw the latents from the posterior and decode them.

        Args:
            encoded: what `encoder(x)` gave; several calls with the same maps draw several importance samples.
            noise: what `noise` gave, drawn here by default; a compiled pass must be given it.
            from_prior: the first so many groups take latents from the prior instead (their KL counts as 0).
            log_ratio: also give log p(z) - log q(z | x); needed with flows, whose KL has no closed form.
        """
        drawn = self.noise(encoded[0].shape[0]) if noise is None else noise
        latents: list[Tensor] = []
        kls: list[Tensor] = []
        ratios: list[Tensor] = []

        def draw(index: int, group: Group, s: Tensor, prior_parameters: tuple[Tensor, Tensor]) -> Tensor:
            prior = Normal.clamped(*prior_parameters)
            q = prior if index < from_prior else group.posterior(s, encoded[index], prior_parameters)
            flows = group.flows if index >= from_prior else nn.Sequential()
            z = flows(q.sample(drawn[index]))
            if log_ratio or len(flows) > 0:
                # Of q, the draw before the flows counts: standardised it is the noise. Log-determinants are 0.
                standard = (z - prior.mu) / prior.sigma
                ratio = 0.5 * (drawn[index].square() - standard.square()) + (q.sigma / prior.sigma).log()
                ratios.append(ratio.sum((1, 2, 3)))
            kls.append(q.kl(prior).sum((1, 2, 3)) if len(flows) == 0 else -ratios[-1])
            latents.append(z)
            return z

        logits = self._top_down(encoded[0].shape[0], draw)
        return Inference(logits, latents, kls, torch.stack(ratios).sum(0) if ratios else None)

    def forward(self, x: Tensor, noise: list[Tensor] | None = None) -> Inference:
        """Training pass: encode `x` (B, C, H, W) in [-1, 1], draw from the posterior (with `noise`), decode."""
        return self.infer(self.encoder(x), noise)

    def sample(self, count: int, temperature: float = 1.0) -> Tensor:
        """Parameters of p(x | z) for `count` draws from the prior, each sigma times `temperature`; one decoder pass."""

        def draw(index: int, group: Group, s: Tensor, prior_parameters: tuple[Tensor, Tensor]) -> Tensor:
            prior = Normal.clamped(*prior_parameters).at_temperature(temperature)
            return prior.sample(standard_normal_like(prior.mu))

        return self._top_down(count, draw)

    def decode(self, latents: list[Tensor]) -> Tensor:
        """Parameters of p(x | z) for given latents, coarsest first."""
        return self._top_down(latents[0].shape[0], lambda index, group, s, prior: latents[index])


def convolutions(model: nn.Module) -> list[nn.Conv2d]:
    """Every convolution, for the spectral penalty."""
    return [m for m in model.modules() if isinstance(m, nn.Conv2d)]
