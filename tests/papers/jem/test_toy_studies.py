"""What is measured on the toys: each number against a closed form, or against a model that is known exactly."""

import math

import pytest
import scipy.stats
import torch
from torch import Tensor

from papers.jem.energy import log_conditional, log_marginal, score
from papers.jem.sgld import Langevin
from papers.jem.toy import SwishMLP, eight_gaussians, kl_data_model, moons, square_grid, train_toy
from papers.jem.toy_studies import (
    angle_rows,
    chain_variances,
    class_kl,
    class_shares,
    cosine_and_error,
    divergence_summary,
    exact_samples,
    finite_rows,
    loss_against_likelihood,
    measure_model,
    quadratic,
    sample_class_shares,
    shifted,
    smoothed,
    train_classifier,
    variance_law,
)

SMALL = {"batch": 64, "width": 16, "seed": 0}


def test_the_shift_changes_the_density_and_not_the_classifier():
    law, grid = eight_gaussians(), square_grid(151)
    x, _ = law.draw(500)
    other = shifted(law.log_joint)
    assert torch.allclose(log_conditional(other(x)), log_conditional(law.log_joint(x)), atol=1e-5)
    change = log_marginal(other(x)) - log_marginal(law.log_joint(x))
    assert torch.allclose(change, 2 * (2 * x[:, 0]).sin(), atol=1e-4)
    # KL(p || p e^c / E_p e^c) = log E_p e^c - E_p c, here from draws.
    x, _ = law.draw(200_000)
    c = 2 * (2 * x[:, 0].double()).sin()
    expected = float(c.exp().mean().log() - c.mean())
    assert kl_data_model(law, other, grid) == pytest.approx(expected, abs=0.03)
    assert expected > 0.5


def test_class_shares_of_a_mixture():
    bias = torch.tensor([0.3, -1.0, 0.9])
    means = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])

    def network(x: Tensor) -> Tensor:
        return bias - 4 * (x[:, None] - means).square().sum(-1)

    shares = class_shares(network, square_grid(151))
    assert shares.exp().tolist() == pytest.approx(bias.softmax(0).tolist(), abs=1e-5)
    uniform = [1 / 3] * 3
    assert class_kl(shares) == pytest.approx(scipy.stats.entropy(uniform, bias.softmax(0).numpy()), abs=1e-5)
    assert class_kl(torch.zeros(4).log_softmax(0)) == pytest.approx(0, abs=1e-6)


def test_class_shares_of_samples_are_counts_and_never_zero():
    law = eight_gaussians()
    x, y = law.draw(4000)
    shares = sample_class_shares(law.log_joint, x).exp()
    assert shares.sum().item() == pytest.approx(1)
    assert shares.tolist() == pytest.approx((torch.bincount(y) / len(y)).tolist(), abs=0.01)
    assert sample_class_shares(law.log_joint, x[y == 0]).isfinite().all()


class Perfect(SwishMLP):
    """The law itself, up to a constant."""

    def forward(self, x: Tensor) -> Tensor:
        return eight_gaussians().log_joint(x) + 5.0


def test_the_law_itself_is_measured_as_perfect():
    found = measure_model(eight_gaussians(), Perfect(4, 2), 0)
    assert found["kl_nats"] == pytest.approx(0, abs=1e-4)
    assert found["class_kl_nats"] == pytest.approx(0, abs=1e-4)
    assert found["heldout_nll_nats"] == pytest.approx(found["heldout_nll_of_law_nats"], abs=1e-4)
    assert found["accuracy_percent"] == found["shifted_accuracy_percent"] > 99
    assert found["shifted_predictions_changed_percent"] == 0
    assert found["shifted_probability_change"] < 1e-5
    assert found["shifted_kl_nats"] > 0.5


def test_a_classifier_learns_labels_and_no_density():
    law = moons()
    model = train_classifier(law, steps=150, learning_rate=1e-2, **SMALL)
    found = measure_model(law, model, 0)
    assert found["accuracy_percent"] > 95
    assert found["kl_nats"] > 1
    torch.manual_seed(0)
    first = SwishMLP(law.classes, SMALL["width"])
    untrained = train_classifier(law, steps=0, learning_rate=1e-2, **SMALL)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), untrained.parameters(), strict=True))


def test_exact_samples_have_the_law_of_the_model():
    def network(x: Tensor) -> Tensor:
        return -(x - torch.tensor([0.5, -1.0])).square().sum(1, keepdim=True) / (2 * 0.49)

    x = exact_samples(network, square_grid(151), 4000, torch.Generator().manual_seed(0))
    for i, centre in enumerate((0.5, -1.0)):
        assert scipy.stats.kstest(x[:, i].numpy(), scipy.stats.norm(centre, 0.7).cdf).pvalue > 1e-3


def test_cosine_and_error_of_gradients():
    exact = torch.tensor([3.0, 4.0])
    assert cosine_and_error(2 * exact, exact) == pytest.approx({"cosine": 1, "relative_error": 1})
    assert cosine_and_error(torch.tensor([-4.0, 3.0]), exact) == pytest.approx(
        {"cosine": 0, "relative_error": math.sqrt(2)}, abs=1e-6
    )


def test_angles_improve_with_length_and_exact_samples_are_best():
    law, matched = eight_gaussians(), Langevin(5, 0.02, None)
    toy = train_toy(law, matched, steps=120, batch=64, buffer_size=300, width=16, learning_rate=5e-3, record_every=60)
    samplers = {"matched": matched, "cold": Langevin(5, 0.02, 0.001)}
    rows = angle_rows(toy, law, samplers, (1, 5, 60), chains=1500, seed=0)
    assert [row["length"] for row in rows] == [1, 5, 60]
    assert rows[0]["cosine_exact_samples"] == rows[-1]["cosine_exact_samples"] > 0.9
    error = [row["relative_error_matched_noise"] for row in rows]
    assert error[-1] < error[0]
    assert error[-1] < rows[-1]["relative_error_cold_noise"]
    # A longer list changes nothing of the shorter one: the chains are the same.
    again = angle_rows(toy, law, {"matched": matched}, (5,), chains=1500, seed=0)[0]
    assert again["cosine_matched_buffer"] == pytest.approx(rows[1]["cosine_matched_buffer"], abs=1e-5)


def test_a_quadratic_energy_has_a_linear_score():
    curvatures, x = torch.tensor([0.5, 2.0]), torch.tensor([[1.0, -3.0]])
    assert torch.allclose(score(quadratic(curvatures), x), -curvatures * x)


@pytest.mark.parametrize("a", [0.1, 1.0, 1.9])
def test_the_variance_law_settles_where_it_should(a: float):
    langevin = Langevin(step_size=0.5, noise=0.3)
    law = variance_law(langevin, a / 0.5, 7.0, 500)
    assert law == pytest.approx(langevin.stationary_variance(a / 0.5), rel=1e-9)
    # And it is a recursion.
    once = variance_law(langevin, a / 0.5, 7.0, 1)
    assert once == pytest.approx((1 - a) ** 2 * 7 + 0.09)
    assert variance_law(langevin, a / 0.5, once, 2) == pytest.approx(variance_law(langevin, a / 0.5, 7.0, 3))


def test_the_variance_law_past_the_bound():
    unit = Langevin(step_size=1.0, noise=1.0)
    assert variance_law(unit, 2.0, 1.0, 10) == 11
    assert variance_law(unit, 3.0, 1.0, 2) == pytest.approx(1 * 16 + 1 * 4 + 1)


def test_chains_have_the_variance_of_the_law():
    products, n = (0.1, 1.0, 1.9, 2.0, 2.2), 20_000
    langevin = Langevin(60, 0.25, 0.01)
    rows = chain_variances(langevin, products, chains=n, seed=0, every=20)
    assert [row["step"] for row in rows] == [0, 20, 40, 60]
    for row in rows:
        for a in products:
            law = variance_law(Langevin(step_size=a, noise=1.0), 1.0, 1.0, int(row["step"]))
            assert row[f"a{a:g}"] == pytest.approx(law, rel=5 * math.sqrt(2 / n))
    other = chain_variances(langevin, products, chains=n, seed=1, every=20)
    assert rows != other
    assert rows == chain_variances(langevin, products, chains=n, seed=0, every=20)


def test_rows_end_before_the_first_that_is_not_finite():
    rows = [{"a": 1.0}, {"a": math.inf}, {"a": 2.0}]
    assert finite_rows(rows) == [{"a": 1.0}]
    assert finite_rows(rows[2:]) == [{"a": 2.0}]


def test_loss_against_likelihood():
    rows = [{"contrast": float(i), "nll_nats": 10.0 - 2 * i} for i in range(4)]
    found = loss_against_likelihood(rows)
    assert found["contrast_nll_correlation"] == pytest.approx(-1)
    assert found["nll_at_lowest_contrast_nats"] == 10
    assert found["nll_lowest_nats"] == 4
    assert found["contrast_range"] == 3
    assert "contrast_nll_correlation" not in loss_against_likelihood([{"contrast": 0.0, "nll_nats": 1.0}] * 3)
    assert "contrast_nll_correlation" not in loss_against_likelihood(rows[:1])


def test_running_means():
    rows = [{"a": float(i)} for i in range(7)]
    assert smoothed(rows, "a") == [0, 0.5, 1, 1.5, 2, 3, 4]


def test_the_summary_of_a_healthy_and_of_a_broken_training():
    kl = [2.0, 1.5, 1.0, 0.8, 0.6]
    healthy = [{"step": i, "kl_nats": v, "step_times_curvature": 0.1 * i} for i, v in enumerate(kl)]
    found = divergence_summary(healthy)
    assert found["diverged"] == 0
    assert found["largest_step_times_curvature"] == pytest.approx(0.4)
    assert "step_at_bound" not in found
    after = [{"step": 5 + i, "kl_nats": 9.0, "step_times_curvature": 2.5 + i} for i in range(5)]
    found = divergence_summary(healthy + after)
    assert found["diverged"] == 1
    assert found["step_at_bound"] == 5
    assert found["step_of_divergence"] == 5
    assert found["step_times_curvature_at_divergence"] == 2.5
    assert found["steps_past_bound"] == 0
    assert found["step_times_curvature_at_lowest_kl"] == pytest.approx(0.4)
    assert found["last_kl_nats"] == 9


def test_a_divergence_before_the_bound_is_told_as_one():
    early = [{"step": i, "kl_nats": 1.0 + i, "step_times_curvature": 0.3} for i in range(6)]
    found = divergence_summary(early)
    assert found["diverged"] == 1
    assert found["step_times_curvature_at_divergence"] == 0.3
    assert found["steps_past_bound"] < 0
    late = [{"step": 6 + i, "kl_nats": 9.0, "step_times_curvature": 3.0} for i in range(4)]
    assert divergence_summary(early + late)["steps_past_bound"] == found["step_of_divergence"] - 6
