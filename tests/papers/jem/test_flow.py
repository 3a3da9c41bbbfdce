"""The flow: inverse, log-determinant against the Jacobian, integrals of the density, units, and what it starts as."""

import math

import pytest
import torch
from scipy import stats
from torch import Tensor

from papers.jem.data import scale
from papers.jem.flow import (
    BOUND,
    EDGE,
    ActNorm,
    AffineCoupling,
    Flow,
    InvertibleMixing,
    bits_per_dim,
    dequantise,
    from_logits,
    levels_of,
    to_logits,
)
from shared.errors import UserError


def shaken(flow: Flow, size: float = 0.2) -> Flow:
    """The same with every parameter moved at random: new couplings are identities, which would test little."""
    with torch.no_grad():
        for p in flow.parameters():
            p += size * torch.randn_like(p)
    return flow


def tiny(channels: int = 1, side: int = 4) -> Flow:
    return shaken(Flow(channels, side, steps=(2, 2), hidden=(4, 5))).double()


def images(count: int, channels: int = 1, side: int = 4) -> Tensor:
    return torch.rand(count, channels, side, side, dtype=torch.float64) * 2 - 1


@torch.no_grad()
@pytest.mark.parametrize(("channels", "side"), [(1, 4), (3, 8), (1, 28)])
def test_the_inverse_gives_the_images_back_and_the_codes(channels: int, side: int) -> None:
    flow, x = tiny(channels, side), images(3, channels, side)
    z, _ = flow(x)
    assert z.shape == (3, channels * side**2)
    torch.testing.assert_close(flow.inverse(z), x, rtol=0, atol=1e-6)
    gentle, other = shaken(Flow(channels, side), 0.02).double(), torch.randn_like(z)
    torch.testing.assert_close(gentle(gentle.inverse(other))[0], other, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("channels", "side"), [(1, 4), (2, 4), (1, 8)])
def test_the_log_determinant_is_that_of_the_jacobian(channels: int, side: int) -> None:
    flow, x = tiny(channels, side), images(2, channels, side)
    _, found = flow(x)
    for i in range(2):
        jacobian = torch.autograd.functional.jacobian(lambda one: flow(one[None])[0][0], x[i])
        expected = torch.linalg.slogdet(jacobian.reshape(flow.dims, flow.dims)).logabsdet
        torch.testing.assert_close(found[i], expected, rtol=1e-9, atol=1e-9)
    assert found[0] != found[1]  # it is a function of the image


def test_the_density_is_that_of_the_code_times_the_change_of_volume() -> None:
    flow = tiny()
    z = torch.randn(5, flow.dims, dtype=torch.float64)
    x = flow.inverse(z)
    gaussian = torch.from_numpy(stats.norm.logpdf(z.numpy())).sum(1)
    torch.testing.assert_close(flow.log_prob(x), gaussian + flow(x)[1])


@torch.no_grad()
def test_the_density_integrates_to_one() -> None:
    """Importance sampling over logits from a Gaussian that knows nothing of the flow, in 16 dimensions."""
    flow = shaken(Flow(1, 4, steps=(1, 1), hidden=(4, 4)), 0.03).double()
    y = 1.15 * torch.randn(20_000, 1, 4, 4, dtype=torch.float64)
    x = from_logits(y)
    log_proposal = torch.from_numpy(stats.norm.logpdf(y.numpy(), scale=1.15)).flatten(1).sum(1) + to_logits(x)[1]
    weights = (flow.log_prob(x) - log_proposal).exp()
    error = float(weights.std()) / 20_000**0.5
    assert error < 0.03
    assert float(weights.mean()) == pytest.approx(1.0, abs=4 * error)


@torch.no_grad()
def test_a_coupling_of_two_values_integrates_to_one_on_a_grid() -> None:
    coupling = AffineCoupling(1, 1, 8).double()
    for p in coupling.parameters():
        p.copy_(0.3 * torch.randn_like(p))
    line = torch.linspace(-12, 12, 241, dtype=torch.float64)
    grid = torch.cartesian_prod(line, line).view(-1, 2, 1, 1)
    z, log_determinant = coupling(grid)
    density = (log_determinant - 0.5 * z.square().sum((1, 2, 3)) - math.log(2 * math.pi)).exp()
    assert log_determinant.std() > 0.01
    assert float(density.sum()) * float(line[1] - line[0]) ** 2 == pytest.approx(1.0, abs=1e-3)


def test_a_coupling_keeps_its_first_channels_and_its_bound() -> None:
    coupling = AffineCoupling(2, 3, 4).double()
    x = images(4, 5)
    assert torch.equal(coupling(x)[0], x)  # new: the identity
    with torch.no_grad():
        coupling.last.weight.fill_(1e3)
    y, log_determinant = coupling(x)
    assert torch.equal(y[:, :2], x[:, :2])
    assert log_determinant.abs().amax() <= BOUND * 3 * 16 + 1e-9
    assert log_determinant.abs().amax() > BOUND


def test_the_mixing_starts_as_a_rotation() -> None:
    mixing = InvertibleMixing(6).double()
    w = mixing.matrix()
    torch.testing.assert_close(w @ w.T, torch.eye(6, dtype=w.dtype), rtol=0, atol=1e-5)
    x = images(2, 6)
    _, log_determinant = mixing(x)
    assert float(log_determinant.detach()) == pytest.approx(0.0, abs=1e-4)
    with torch.no_grad():
        mixing.log_scale += torch.randn(6)
        mixing.lower += torch.randn(6, 6)
    expected = 16 * torch.linalg.slogdet(mixing.matrix()).logabsdet
    torch.testing.assert_close(mixing(x)[1], expected)


def test_the_first_batch_sets_mean_and_variance_after_every_actnorm() -> None:
    flow, x = Flow(1, 8, steps=(2, 2), hidden=(4, 4)).double(), 0.1 * images(50, 1, 8) + 0.7
    flow.initialise(x)
    seen: list[Tensor] = []
    for norm in (module for module in flow.modules() if isinstance(module, ActNorm)):
        norm.register_forward_hook(lambda _, __, output: seen.append(output[0]))
    flow(x)
    assert len(seen) == 4
    for y in seen:
        torch.testing.assert_close(y.mean((0, 2, 3)), torch.zeros(y.shape[1], dtype=y.dtype), rtol=0, atol=1e-9)
        torch.testing.assert_close(y.var((0, 2, 3), correction=0), torch.ones(y.shape[1], dtype=y.dtype))


def test_a_channel_without_variance_does_no_harm() -> None:
    flow = Flow(1, 4, steps=(1, 1), hidden=(2, 2))
    flow.initialise(torch.full((8, 1, 4, 4), -1.0))
    assert torch.isfinite(flow.log_prob(torch.zeros(1, 1, 4, 4))).all()


def test_every_image_by_itself() -> None:
    flow, x = tiny(1, 8), images(6, 1, 8)
    alone = torch.cat([flow.log_prob(one[None]) for one in x])
    torch.testing.assert_close(flow.log_prob(x), alone, rtol=1e-12, atol=1e-10)


def test_the_gradient_in_the_image_is_that_of_differences() -> None:
    flow, x = tiny(), images(2)
    assert torch.autograd.gradcheck(flow.log_prob, (x.requires_grad_(),))


def test_bfloat16_is_near_and_only_in_the_couplings() -> None:
    flow, x = shaken(Flow(1, 8), 0.03), images(4, 1, 8).float()
    exact, rough = flow.log_prob(x), flow.log_prob(x, "bfloat16")
    assert rough.dtype == torch.float32
    assert not torch.equal(exact, rough)
    assert (exact - rough).abs().amax() < 0.01 * flow.dims


def test_samples_are_images_of_gaussian_codes_and_repeat() -> None:
    flow = shaken(Flow(1, 8, steps=(1, 1), hidden=(4, 4)), 0.05)
    first, second = (flow.sample(500, torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(first, second)
    assert first.shape == (500, 1, 8, 8)
    z = flow(first)[0].detach()
    assert float(z.mean()) == pytest.approx(0, abs=0.03)
    assert float(z.std()) == pytest.approx(1, abs=0.03)


def test_units_of_bits_per_dim() -> None:
    """Uniform over [-1, 1]^D: 8 bits; all in one level of 256: none."""
    dims = 12
    for width, bits in ((2.0, 8.0), (1.0, 7.0), (2 / 256, 0.0)):
        log_density = torch.tensor([-dims * math.log(width)], dtype=torch.float64)
        assert float(bits_per_dim(log_density, dims)) == pytest.approx(bits, abs=1e-12)


def test_noise_fills_a_level_and_no_more() -> None:
    pixels = torch.arange(256, dtype=torch.uint8).repeat(40).view(10, 1, 32, 32)
    x = dequantise(scale(pixels), torch.Generator().manual_seed(0))
    assert torch.equal(levels_of(x), pixels)
    assert -1 <= float(x.amin()) < -0.99
    assert 0.99 < float(x.amax()) < 1
    inside = (x + 1) * 128 - pixels
    assert stats.kstest(inside.flatten().double().numpy(), "uniform").pvalue > 0.001
    assert torch.equal(x, dequantise(scale(pixels), torch.Generator().manual_seed(0)))


def test_values_between_levels_are_rounded_and_values_outside_cut() -> None:
    x = torch.tensor([[-1.2, 3.0, 10.4 / 127.5 - 1, 10.6 / 127.5 - 1]])
    assert levels_of(dequantise(x)).tolist() == [[0, 255, 10, 11]]


def test_parameter_counts() -> None:
    """By hand: actnorm 2 c, mixing c + 2 c^2, coupling 9 k h + h + h^2 + h + 9 h 2 m + 2 m."""

    def coupling(c: int, h: int) -> int:
        half = c // 2
        return 9 * half * h + h + h * h + h + 18 * h * half + 2 * half

    def step(c: int, h: int) -> int:
        return 2 * c + c + 2 * c * c + coupling(c, h)

    for channels, side in ((1, 28), (3, 32)):
        flow = Flow(channels, side, steps=(3, 2), hidden=(16, 24))
        expected = 3 * step(4 * channels, 16) + coupling(4 * channels, 16) + 2 * step(8 * channels, 24)
        assert sum(p.numel() for p in flow.parameters()) == expected
        assert flow.dims == channels * side**2


def test_the_logit_scale_has_its_inverse_and_volume() -> None:
    x = torch.cat([images(3).flatten(1), torch.tensor([[-1.0] * 8 + [1.0] * 8], dtype=torch.float64)])
    y, change = to_logits(x)
    torch.testing.assert_close(from_logits(y), x)
    slope = torch.autograd.functional.jacobian(lambda one: to_logits(one[None])[0][0], x[3]).diagonal()
    assert float(change[3]) == pytest.approx(float(slope.log().sum()))
    assert float(y[3].abs().amax()) == pytest.approx(math.log((1 - EDGE) / EDGE))


def test_a_side_that_cannot_be_halved_twice_is_refused() -> None:
    with pytest.raises(UserError, match="a side of 30 pixels is not divisible by 4"):
        Flow(1, 30)
