"""Estimators: which are unbiased, what their variance is, and what makes it lower."""

import functools

import pytest
import torch

from papers.sst import gradient_study
from papers.sst.gradient_problems import Problem, exact_gradient, problems
from papers.sst.gradient_study import ARMS, Arm, controlled, measure, running_average, tuned_control

PROBLEMS = {problem.name: problem for problem in problems()}
every_problem = pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)
UNBIASED = [name for name in ARMS if name.startswith(("reinforce", "rebar")) and "batch_mean" not in name]
SAMPLES = 10_000


@functools.cache
def measured(problem: str, arm: str) -> dict[str, float]:
    return measure(PROBLEMS[problem], ARMS[arm], SAMPLES, torch.Generator().manual_seed(0))


@every_problem
@pytest.mark.parametrize("arm", UNBIASED)
def test_score_functions_are_unbiased(problem: Problem, arm: str) -> None:
    assert measured(problem.name, arm)["bias_z"] < 4.5


@every_problem
def test_the_batch_mean_shrinks_the_gradient_by_a_quarter(problem: Problem) -> None:
    found = measured(problem.name, "reinforce_batch_mean_4")
    norm = exact_gradient(problem, problem.theta).norm().item()
    assert found["bias"] == pytest.approx(norm / 4, abs=5 * found["bias_se"])


@every_problem
def test_bias_rises_and_variance_falls_with_the_temperature(problem: Problem) -> None:
    found = [measured(problem.name, f"relaxed_t{t:g}") for t in (0.1, 0.5, 1.0, 2.0)]
    biases, variances = [each["bias"] for each in found], [each["variance"] for each in found]
    assert biases == sorted(biases)
    assert variances == sorted(variances, reverse=True)


@pytest.mark.parametrize(
    ("arm", "bias", "variance"),
    [
        ("reinforce_trace", 0.0, 1.299),
        ("reinforce_mean_4", 0.0, 0.325),
        ("reinforce_leave_one_out_4", 0.0, 0.142),
        ("relaxed_t0.5", 0.162, 0.508),
        ("relaxed_t1", 0.255, 0.117),
        ("straight_through_t1", 0.295, 0.487),
    ],
)
def test_reference_values_of_the_categorical_problem(arm: str, bias: float, variance: float) -> None:
    found = measured("categorical", arm)
    assert found["bias"] == pytest.approx(bias, abs=4 * found["bias_se"] + 2e-3)
    assert found["variance"] == pytest.approx(variance, rel=0.12)
    assert found["cost_variance"] == pytest.approx(found["variance"] * (4 if arm.endswith("4") else 1))
    assert found["bias_se"] == pytest.approx((found["variance"] / SAMPLES) ** 0.5)


@pytest.mark.parametrize("name", ["k_subsets", "spanning_trees"])
def test_the_fewer_variables_the_score_is_of_the_lower_the_variance(name: str) -> None:
    variances = [measured(name, f"reinforce_{of}")["variance"] for of in ("x", "trace", "utilities")]
    assert variances == sorted(variances)


def test_the_variance_of_a_constant_estimate_is_nothing_and_its_bias_exact() -> None:
    problem = PROBLEMS["categorical"]
    found = measure(problem, Arm(lambda p, theta, *_: theta.sum(-1)), 25, torch.Generator())
    error = (1 - exact_gradient(problem, problem.theta)).norm().item()
    assert found["bias"] == pytest.approx(error)
    assert found["variance"] == pytest.approx(0, abs=1e-12)


def test_chunks_are_one_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many estimates in pieces as at once: their squares are all there."""
    problem = PROBLEMS["k_subsets"]
    monkeypatch.setattr(gradient_study, "CHUNK", 700)
    found = measure(problem, ARMS["relaxed_t1"], SAMPLES, torch.Generator().manual_seed(1))
    assert found["variance"] == pytest.approx(measured("k_subsets", "relaxed_t1")["variance"], rel=0.1)


def test_the_running_average_knows_only_the_past() -> None:
    loss = torch.tensor([[3.0, 5.0, 1.0, 7.0]], dtype=torch.float64)
    d = gradient_study.DECAY
    second = d * 3 + (1 - d) * 5
    expected = torch.tensor([[0, 3.0, second, d * second + (1 - d) * 1]], dtype=torch.float64)
    torch.testing.assert_close(running_average(loss), expected)


@every_problem
def test_a_tuned_control_is_unbiased_and_no_worse(problem: Problem) -> None:
    temperature, scale = tuned_control(problem, 5000, torch.Generator().manual_seed(2))
    arm = Arm(functools.partial(controlled, temperature=temperature, scale=scale), evaluations=3)
    found = measure(problem, arm, SAMPLES, torch.Generator().manual_seed(3))
    assert found["bias_z"] < 4.5
    assert found["variance"] < 1.05 * measured(problem.name, "rebar_t0.5")["variance"]
    assert found["variance"] < measured(problem.name, "reinforce_trace")["variance"]
