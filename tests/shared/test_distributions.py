"""Densities and divergences against closed forms, torch.distributions, sums and Monte Carlo."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import Bernoulli, kl_divergence
from torch.distributions import Normal as Reference

from shared.distributions import DiscretisedLogisticMixture, Normal, bernoulli_log_prob, residual_kl, soft_clamp

reals = st.floats(-4, 4, allow_nan=False)
positives = st.floats(0.02, 20)


def number(x: float) -> Tensor:
    return torch.tensor(x, dtype=torch.float64)


# --- the Normal ---


@pytest.mark.parametrize(("a", "value"), [(10, 4.8201379), (1, 0.9868766), (0, 0), (-1, -0.9868766)])
def test_soft_clamp_values(a: float, value: float) -> None:
    assert soft_clamp(number(a)).item() == pytest.approx(value, abs=5e-8)


@given(st.floats(-1e4, 1e4))
def test_soft_clamp_is_bounded_odd_and_never_expands(a: float) -> None:
    clamped = soft_clamp(number(a)).item()
    assert abs(clamped) <= min(5, abs(a)) * (1 + 1e-12)
    assert soft_clamp(number(-a)).item() == -clamped


def test_soft_clamp_has_slope_one_at_zero() -> None:
    a = number(0.0).requires_grad_(True)
    soft_clamp(a).backward()
    assert a.grad is not None
    assert a.grad.item() == 1


@pytest.mark.parametrize(("log_sigma", "sigma"), [(0, 1.01), (-5, 0.0321932), (-1e4, math.exp(-5) + 0.01)])
def test_clamped_sigma(log_sigma: float, sigma: float) -> None:
    normal = Normal.clamped(torch.tensor(0.0), torch.tensor(float(log_sigma)))
    assert normal.sigma.item() == pytest.approx(sigma, rel=2e-6)


def test_clamped_mean_and_bounds_of_sigma() -> None:
    normal = Normal.clamped(torch.tensor([10.0, -1e6]), torch.tensor([1e6, -1e6]))
    assert normal.mu.tolist() == pytest.approx([4.8201379, -5])
    assert normal.sigma.tolist() == pytest.approx([148.4232, 0.0167379], rel=1e-5)


@given(reals, positives, reals, positives)
def test_kl_is_that_of_torch(mu: float, sigma: float, mu_p: float, sigma_p: float) -> None:
    ours = Normal(number(mu), number(sigma)).kl(Normal(number(mu_p), number(sigma_p)))
    theirs = kl_divergence(Reference(number(mu), number(sigma)), Reference(number(mu_p), number(sigma_p)))
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-9, abs=1e-9)
    assert ours.item() >= -1e-12


@given(reals, positives, reals, positives)
def test_residual_kl_is_the_kl_of_the_shifted_normal(mu: float, sigma: float, shift: float, factor: float) -> None:
    prior = Normal(number(mu), number(sigma))
    posterior = Normal(number(mu + shift), number(sigma * factor))
    relative = residual_kl(number(shift), number(factor), number(sigma))
    assert relative.item() == pytest.approx(posterior.kl(prior).item(), rel=1e-9, abs=1e-9)


def test_residual_kl_value() -> None:
    assert residual_kl(number(0.5), number(0.8), number(2.0)).item() == pytest.approx(0.0743936, abs=5e-8)
    assert residual_kl(number(0.0), number(1.0), number(3.7)).item() == 0
    same = Normal(number(0.3), number(1.7))
    assert same.kl(same).item() == 0


def test_kl_by_monte_carlo() -> None:
    q, p = Normal(number(0.7), number(0.5)), Normal(number(-0.2), number(1.3))
    z = q.sample(torch.randn(400_000, dtype=torch.float64))
    draws = q.log_prob(z) - p.log_prob(z)
    error = draws.std().item() / len(z) ** 0.5
    assert q.kl(p).item() == pytest.approx(draws.mean().item(), abs=4 * error)
    assert error < 2e-3, "the test would not see a wrong KL"


@given(reals, positives, reals)
def test_log_prob_is_that_of_torch(mu: float, sigma: float, z: float) -> None:
    ours = Normal(number(mu), number(sigma)).log_prob(number(z)).item()
    assert ours == pytest.approx(Reference(number(mu), number(sigma)).log_prob(number(z)).item(), rel=1e-12, abs=1e-12)


def test_sample_is_differentiable_in_both_parameters() -> None:
    mu, sigma = number(0.5).requires_grad_(True), number(2.0).requires_grad_(True)
    z = Normal(mu, sigma).sample(number(1.5))
    assert z.item() == 3.5
    assert [g.item() for g in torch.autograd.grad(z, (mu, sigma))] == [1, 1.5]


@pytest.mark.parametrize("temperature", [0.6, 1.0])
def test_temperature_scales_the_standard_deviation(temperature: float) -> None:
    prior = Normal.clamped(torch.zeros(200_000), torch.zeros(200_000)).at_temperature(temperature)
    z = prior.sample(torch.randn(200_000))
    assert z.var().item() == pytest.approx((1.01 * temperature) ** 2, rel=4 * (2 / 200_000) ** 0.5)


def test_temperature_zero_is_the_mean() -> None:
    normal = Normal(torch.randn(10), torch.rand(10) + 1).at_temperature(0)
    assert torch.equal(normal.sample(torch.randn(10)), normal.mu)


# --- Bernoulli ---


def test_bernoulli_with_equal_chances() -> None:
    x = (torch.rand(1, 1, 28, 28) < 0.5).float()
    assert -bernoulli_log_prob(torch.zeros_like(x), x).sum().item() == pytest.approx(543.4274, abs=1e-3)


@given(st.floats(-30, 30), st.sampled_from([0.0, 1.0]))
def test_bernoulli_is_that_of_torch(logit: float, x: float) -> None:
    ours = bernoulli_log_prob(torch.tensor(logit), torch.tensor(x)).item()
    theirs = Bernoulli(logits=number(logit)).log_prob(number(x)).item()
    assert ours == pytest.approx(theirs, rel=1e-5, abs=1e-6)


def test_bernoulli_computes_in_float32() -> None:
    assert bernoulli_log_prob(torch.zeros(3, dtype=torch.bfloat16), torch.ones(3)).dtype == torch.float32


# --- discretised logistics ---


def grid(bits: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.arange(2**bits, dtype=dtype) * 2 / (2**bits - 1) - 1


def one_component(mean: float, log_scale: float, values: Tensor, bits: int) -> DiscretisedLogisticMixture:
    """One component at each of the values, which stand along the width."""
    shape = (1, 1, 3, 1, len(values))
    full = torch.full(shape, mean, dtype=torch.float64)
    return DiscretisedLogisticMixture(
        torch.zeros(1, 1, 1, len(values), dtype=torch.float64), full, torch.full_like(full, log_scale),
        torch.zeros_like(full), bits,
    )  # fmt: skip


@pytest.mark.parametrize("bits", [8, 5])
@given(mean=st.floats(-1.5, 1.5), log_scale=st.floats(-7, 3))
def test_masses_sum_to_one(bits: int, mean: float, log_scale: float) -> None:
    """Over all values of a channel, edges included; the widespread edge test at 0.99 gives up to 1.5 at 8 bits."""
    values = grid(bits)
    x = values.view(1, 1, 1, -1).expand(1, 3, 1, -1)
    log_mass = one_component(mean, log_scale, values, bits).component_log_prob(x)
    assert torch.isfinite(log_mass).all()
    assert log_mass.exp().sum(-1).flatten().tolist() == pytest.approx([1, 1, 1], abs=1e-6)


@pytest.mark.parametrize("bits", [8, 5])
def test_masses_are_differences_of_the_distribution_function(bits: int) -> None:
    values, mean, scale = grid(bits), 0.93, 0.15
    x = values.view(1, 1, 1, -1).expand(1, 3, 1, -1)
    mass = one_component(mean, math.log(scale), values, bits).component_log_prob(x)[0, 0, 0, 0].exp()
    half = 1 / (2**bits - 1)
    below = torch.sigmoid((values[:-1] + half - mean) / scale)  # the distribution function between neighbours
    expected = torch.cat([below[:1], below.diff(), 1 - below[-1:]])
    torch.testing.assert_close(mass, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("bits", [8, 5])
def test_masses_sum_to_one_in_float32_for_a_whole_mixture(bits: int) -> None:
    """The red channel of a mixture of four, as a network would give it; float32 as in training."""
    values = grid(bits, torch.float32)
    parameters = (2 * torch.randn(1, 40, 1, 1)).expand(1, 40, 1, len(values))
    mixture = DiscretisedLogisticMixture.from_parameters(parameters, 4, bits)
    x = values.view(1, 1, 1, -1).expand(1, 3, 1, -1)
    red = mixture.component_log_prob(x)[:, :, 0] + torch.log_softmax(mixture.logits, 1)
    assert torch.logsumexp(red, 1).exp().sum().item() == pytest.approx(1, abs=1e-5)


def test_joint_mass_of_a_pixel_sums_to_one() -> None:
    """All 8 ** 3 colours at 3 bits: the regression of channels on one another does not lose mass."""
    values = grid(3, torch.float32)
    x = torch.cartesian_prod(values, values, values).T.reshape(1, 3, 1, -1)
    parameters = torch.randn(1, 30, 1, 1).expand(1, 30, 1, x.shape[-1])
    log_prob = DiscretisedLogisticMixture.from_parameters(parameters, 3, 3).log_prob(x)
    assert log_prob.exp().sum().item() == pytest.approx(1, abs=1e-5)


def mixture(batch: int = 2, side: int = 4, components: int = 10, bits: int = 8) -> DiscretisedLogisticMixture:
    return DiscretisedLogisticMixture.from_parameters(torch.randn(batch, 10 * components, side, side), components, bits)


def test_channels_depend_on_earlier_channels_only() -> None:
    m = mixture()
    x = m.sample()
    plain = m.component_log_prob(x)
    for channel, affected in ((2, [2]), (1, [1, 2]), (0, [0, 1, 2])):
        changed = x.clone()
        changed[:, channel] = -changed[:, channel]
        same = (m.component_log_prob(changed) == plain).flatten(3).all(-1).all(0).all(0)
        assert [c for c in range(3) if not same[c]] == affected


def test_regression_coefficients() -> None:
    """mean_G += c0 r and mean_B += c1 r + c2 g: a shift of the mean by hand gives the same mass."""
    m = mixture(components=1)
    x = m.sample()
    r, g = x[:, None, 0], x[:, None, 1]
    c = m.coefficients
    means = torch.stack(
        [m.means[:, :, 0], m.means[:, :, 1] + c[:, :, 0] * r, m.means[:, :, 2] + c[:, :, 1] * r + c[:, :, 2] * g], 2
    )
    by_hand = DiscretisedLogisticMixture(m.logits, means, m.log_scales, torch.zeros_like(c))
    torch.testing.assert_close(by_hand.log_prob(x), m.log_prob(x))


@pytest.mark.parametrize("bits", [8, 5])
def test_samples_lie_on_the_grid_and_have_finite_probability(bits: int) -> None:
    parameters = 4 * torch.randn(3, 100, 8, 8)
    m = DiscretisedLogisticMixture.from_parameters(parameters, 10, bits)
    x = m.sample()
    assert x.shape == (3, 3, 8, 8)
    index = (x + 1) * (2**bits - 1) / 2
    torch.testing.assert_close(index, index.round(), rtol=0, atol=1e-4)
    assert x.min() >= -1
    assert x.max() <= 1
    assert torch.isfinite(m.log_prob(x)).all()


def test_sample_frequencies_are_the_masses() -> None:
    """3 bits, one pixel: 20 000 draws of red against its masses, within four standard errors."""
    n, values = 20_000, grid(3, torch.float32)
    one = torch.randn(1, 30, 1, 1)
    m = DiscretisedLogisticMixture.from_parameters(one.expand(n, 30, 1, 1), 3, 3)
    drawn = m.sample(torch.Generator().manual_seed(3))
    at = DiscretisedLogisticMixture.from_parameters(one.expand(1, 30, 1, 8), 3, 3)
    log_mass = at.component_log_prob(values.view(1, 1, 1, -1).expand(1, 3, 1, -1))[:, :, 0]
    mass = torch.logsumexp(log_mass + torch.log_softmax(at.logits, 1), 1).exp().flatten()
    frequency = torch.bincount(((drawn[:, 0].flatten() + 1) * 3.5).round().long(), minlength=8) / n
    assert ((frequency - mass).abs() <= 4 * (mass * (1 - mass) / n).sqrt() + 1e-6).all()
    # Blue needs the drawn red and green: its average log-mass is minus an entropy and must not beat the best code.
    nats = -m.log_prob(drawn).mean().item()
    assert nats < 3 * math.log(8)


def test_far_tails_keep_values_and_gradients_finite() -> None:
    parameters = torch.zeros(1, 10, 1, 2)
    parameters[:, 1:4] = 50  # means far off the data
    parameters[:, 4:7] = -100  # scales at their floor
    parameters.requires_grad_(True)
    m = DiscretisedLogisticMixture.from_parameters(parameters, 1)
    assert m.log_scales.min() == -7
    nats = m.log_prob(torch.tensor([-1.0, 1 / 255]).view(1, 1, 1, 2).expand(1, 3, 1, 2))
    nats.sum().backward()
    assert torch.isfinite(nats).all()
    assert parameters.grad is not None
    assert torch.isfinite(parameters.grad).all()


def test_wrong_number_of_channels_is_refused() -> None:
    with pytest.raises(ValueError, match="needs 100 channels, got 99"):
        DiscretisedLogisticMixture.from_parameters(torch.zeros(1, 99, 2, 2), 10)
