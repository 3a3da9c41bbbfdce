"""The objective of NVAE: schedules, balance, penalties, and the importance-weighted bound on a case with an answer."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from papers.nvae import losses
from papers.nvae.experiment import bits_per_dim
from shared.bn_swish import BatchNorm, BatchNormSwish
from shared.distributions import DiscretisedLogisticMixture, Normal
from tests.papers.nvae import tiny

# --- reconstruction ---


def test_reconstruction_with_equal_chances() -> None:
    x = (torch.rand(3, 1, 28, 28) < 0.3).float()
    nats = losses.reconstruction_nats(torch.zeros(3, 1, 32, 32), x, tiny.settings())
    assert nats.tolist() == pytest.approx([543.4274] * 3, abs=1e-3)


def test_padding_is_not_scored() -> None:
    x = (torch.rand(2, 1, 28, 28) < 0.3).float()
    logits = torch.randn(2, 1, 32, 32, requires_grad=True)
    nats = losses.reconstruction_nats(logits, x, tiny.settings())
    nats.sum().backward()
    assert logits.grad is not None
    assert (logits.grad[:, :, 2:30, 2:30] != 0).all()
    assert logits.grad.abs().sum() == logits.grad[:, :, 2:30, 2:30].abs().sum()
    centre = torch.distributions.Bernoulli(logits=logits[:, :, 2:30, 2:30])
    torch.testing.assert_close(nats, -centre.log_prob(x).sum((1, 2, 3)))


@pytest.mark.parametrize("bits", [8, 5])
def test_reconstruction_of_rgb_is_the_mixture_summed_over_pixels(bits: int) -> None:
    chosen = tiny.settings(data="cifar10", mixture_components=3, image_bits=bits)
    x = torch.randint(0, 2**bits, (2, 3, 4, 4)) / (2**bits - 1) * 2 - 1
    logits = torch.randn(2, 30, 4, 4)
    expected = -DiscretisedLogisticMixture.from_parameters(logits, 3, bits).log_prob(x).sum((1, 2))
    torch.testing.assert_close(losses.reconstruction_nats(logits, x, chosen), expected)


@pytest.mark.parametrize(
    ("nats_a_dim", "bits"), [(1.0, 1.442695), (8 * math.log(2), 8.0)]  # a uniform 8-bit pixel costs 8 bits
)  # fmt: skip
def test_bits_per_dim(nats_a_dim: float, bits: float) -> None:
    assert bits_per_dim(nats_a_dim * 3 * 32 * 32, (3, 32, 32)) == pytest.approx(bits, rel=1e-6)


# --- KL coefficient and balance ---


@pytest.mark.parametrize(
    ("share", "value"), [(0, 1e-4), (0.15, 0.4997), (0.31, 1), (0.3, 0.99967), (0.9, 1)]
)  # fmt: skip
def test_kl_coefficient(share: float, value: float) -> None:
    steps = 100_000
    assert losses.kl_coefficient(round(share * steps), steps, 0.3) == pytest.approx(value, abs=5e-5)


def test_kl_coefficient_rises_and_needs_no_warmup() -> None:
    betas = [losses.kl_coefficient(k, 1000, 0.3) for k in range(1000)]
    assert betas == sorted(betas)
    assert betas[0] == 1e-4
    assert losses.kl_coefficient(0, 1000, 0.0) == 1


@pytest.mark.parametrize(
    ("fine_to_coarse", "coarse_to_fine"),
    [
        ((10, 5), [1] * 5 + [2] * 10),
        ((20, 10, 5), [1] * 5 + [2] * 10 + [4] * 20),
        ((16, 8, 4, 4, 4), [1] * 4 + [4] * 4 + [16] * 4 + [32] * 8 + [64] * 16),
        ((30,), [1] * 30),
    ],
)
def test_group_weights(fine_to_coarse: tuple[int, ...], coarse_to_fine: list[int]) -> None:
    assert losses.group_weights(fine_to_coarse) == pytest.approx(coarse_to_fine)


positive = st.floats(0, 1e4)


@given(st.lists(positive, min_size=1, max_size=12))
def test_balance_has_mean_one(kls: list[float]) -> None:
    alpha = [1.0 + i for i in range(len(kls))]
    gamma = losses.kl_balance([torch.full((4,), kl) for kl in kls], alpha)
    assert gamma.mean().item() == pytest.approx(1, rel=1e-5)
    assert (gamma > 0).all()


def test_balance_formula() -> None:
    """gamma is (mean |KL| + 0.01) / alpha over its mean, so equal KL gives the coarse groups more."""
    kls = [torch.tensor([3.0, 5.0]), torch.tensor([-2.0, 2.0]), torch.tensor([0.0, 0.0])]
    k = torch.tensor([4.01, 2.01 / 2, 0.01 / 2])
    torch.testing.assert_close(losses.kl_balance(kls, [1, 2, 2]), k / k.mean())


def test_balance_is_even_when_kl_is_proportional_to_alpha() -> None:
    alpha = losses.group_weights((10, 5))
    kls = [torch.full((8,), 7 * a - 0.01) for a in alpha]
    torch.testing.assert_close(losses.kl_balance(kls, alpha), torch.ones(15))


def test_balance_passes_no_gradient() -> None:
    kl = torch.tensor([1.0, 2.0], requires_grad=True)
    assert not losses.kl_balance([kl, 2 * kl], [1, 1]).requires_grad


# --- penalties ---


def test_regularisation_weight() -> None:
    assert losses.regularisation_weight(0.3, 0.01, None) == 0.01
    assert losses.regularisation_weight(0, 0.01, 1.0) == pytest.approx(1)
    assert losses.regularisation_weight(0.5, 0.01, 1.0) == pytest.approx(0.1)
    assert losses.regularisation_weight(1, 0.01, 1.0) == pytest.approx(0.01)


def test_batch_norm_penalty() -> None:
    layers = [BatchNormSwish(3), BatchNorm(3), BatchNorm(5)]
    with torch.no_grad():
        layers[0].weight.copy_(torch.tensor([1.0, -3.0, 2.0]))
        layers[1].weight.fill_(0.5)
        layers[2].weight.copy_(torch.tensor([0.0, 0.0, 0.0, 0.25, -0.1]))
    penalty = losses.batch_norm_penalty(layers)
    assert penalty.item() == pytest.approx(3.75)
    penalty.backward()
    assert layers[0].weight.grad is not None
    assert layers[0].weight.grad.tolist() == [0, -1, 0]
    assert losses.batch_norm_penalty([]).item() == 0


# --- the whole ---


def parts() -> tuple[Tensor, list[Tensor], list[float]]:
    return torch.tensor([90.0, 110.0]), [torch.tensor([4.0, 6.0]), torch.tensor([1.0, 3.0])], [1.0, 2.0]


def test_objective_during_warmup() -> None:
    reconstruction, kls, alpha = parts()
    terms = losses.objective(reconstruction, kls, 0.25, alpha, balancing=True, penalty=torch.tensor(0.5))
    gamma = losses.kl_balance(kls, alpha)
    assert terms.loss.item() == pytest.approx(100 + 0.25 * (gamma[0] * 5 + gamma[1] * 2).item() + 0.5)
    assert terms.bound_nats.item() == pytest.approx(107), "the bound has no coefficients and no penalty"
    assert terms.reconstruction_nats.item() == pytest.approx(100)
    assert terms.kl_nats.tolist() == [5, 2]


def test_objective_after_warmup_is_the_bound() -> None:
    reconstruction, kls, alpha = parts()
    terms = losses.objective(reconstruction, kls, 1.0, alpha, balancing=True, penalty=None)
    assert terms.loss.item() == terms.bound_nats.item() == pytest.approx(107)


def test_objective_without_balancing() -> None:
    reconstruction, kls, alpha = parts()
    terms = losses.objective(reconstruction, kls, 0.25, alpha, balancing=False, penalty=None)
    assert terms.loss.item() == pytest.approx(100 + 0.25 * 7)


# --- importance weighting: z ~ N(0, 1), x | z ~ N(z, 1), x = 1, q = N(0.3, 0.8^2) ---

EVIDENCE, BOUND = -1.5155121, -1.5720821
# Variance of posterior / q under q, with posterior N(0.5, 0.5): the bound of K samples lies SPREAD / (2 K) below, to
# first order in 1 / K.
SPREAD = 0.64 / math.sqrt(0.5 * 0.78) * math.exp(0.2**2 / 0.78) - 1


def log_weights(samples: int, repeats: int) -> Tensor:
    one, zero = torch.tensor(1.0, dtype=torch.float64), torch.tensor(0.0, dtype=torch.float64)
    q = Normal(zero + 0.3, one * 0.8)
    z = q.sample(torch.randn(samples, repeats, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))
    return Normal(zero, one).log_prob(z) + Normal(z, torch.ones_like(z)).log_prob(one) - q.log_prob(z)


def estimate(samples: int, repeats: int) -> tuple[float, float]:
    """The estimated log-evidence and its standard error."""
    values = -losses.importance_weighted_nll_nats(log_weights(samples, repeats))
    return values.mean().item(), values.std().item() / repeats**0.5


@pytest.mark.parametrize(
    ("samples", "repeats", "expected"),
    [(1, 1_000_000, BOUND), (10, 200_000, EVIDENCE - SPREAD / 20), (1000, 2_000, EVIDENCE - SPREAD / 2000)],
)
def test_importance_weighted_bound(samples: int, repeats: int, expected: float) -> None:
    value, error = estimate(samples, repeats)
    assert error < 1e-3, "the test would not see a wrong estimate"
    assert value == pytest.approx(expected, abs=4 * error + 5e-4 / samples**0.5)


def test_importance_weighted_bound_rises_to_the_evidence() -> None:
    values = [estimate(samples, 100_000)[0] for samples in (1, 2, 4, 16, 64)]
    assert values == sorted(values)
    assert values[-1] == pytest.approx(EVIDENCE, abs=2e-3)


def test_importance_weights_of_any_size() -> None:
    """Log-weights of thousands of nats neither overflow nor vanish."""
    log_w = torch.tensor([[-5000.0, 900.0], [-5000.0, 900.0 - math.log(3)]])
    expected = [5000, -900 - math.log(2 / 3)]
    assert losses.importance_weighted_nll_nats(log_w).tolist() == pytest.approx(expected)


# --- pixels ---


def test_binarise_has_the_intensity_as_its_chance() -> None:
    pixels = torch.arange(256, dtype=torch.uint8).repeat(4000, 1)
    mean = losses.binarise(pixels, torch.rand(pixels.shape)).mean(0)
    intensity = torch.arange(256) / 255
    assert ((mean - intensity).abs() <= 5 * (intensity * (1 - intensity) / 4000).sqrt()).all(), "0 and 255 exactly"
    uniform = torch.rand(5, 5)
    assert torch.equal(losses.binarise(torch.full((5, 5), 0.4), uniform), (uniform < 0.4).float())


def test_pad_centred() -> None:
    x = torch.ones(1, 1, 28, 28)
    y = losses.pad_centred(x, 32)
    assert y.shape == (1, 1, 32, 32)
    assert y.sum() == x.sum()
    assert (y[:, :, 2:30, 2:30] == 1).all()
    assert losses.pad_centred(y, 32) is y
