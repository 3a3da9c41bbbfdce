"""Problems with an exact gradient: laws of traces, vertices and expected losses against other enumerations."""

import itertools

import pytest
import torch
from scipy import stats

from papers.sst.gradient_problems import (
    Problem,
    exact_gradient,
    expected_loss,
    kruskal_log_prob,
    log_prob_of_vertex,
    problems,
    trace,
)
from papers.sst.laws import exact_law
from papers.sst.structures import Structure
from papers.sst.utilities import draw_noise, sample
from shared.solvers.spanning_tree import max_spanning_tree
from tests.shared.solvers.trees import is_tree

PROBLEMS = {problem.name: problem for problem in problems()}
every_problem = pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)


def by_all_orders(problem: Problem, theta: torch.Tensor) -> torch.Tensor:
    """E L(X) by the Plackett-Luce probabilities of all n! orders of all items."""
    structure = Structure("any", problem.vertices, problem.vertices[:0], problem.solver, problem.relaxation, ())
    return exact_law(structure, theta) @ problem.loss(problem.vertices)


def test_gradient_of_the_reference_problem() -> None:
    problem = PROBLEMS["categorical"]
    expected = torch.tensor([0.322513, 0.176999, -0.499512], dtype=torch.float64)
    torch.testing.assert_close(exact_gradient(problem, problem.theta), expected, rtol=0, atol=1e-6)


@every_problem
def test_traces_give_the_law_of_all_orders(problem: Problem) -> None:
    theta = problem.theta.clone().requires_grad_()
    loss = by_all_orders(problem, theta)
    torch.testing.assert_close(loss, expected_loss(problem, theta))
    (expected,) = torch.autograd.grad(loss, theta)
    torch.testing.assert_close(exact_gradient(problem, problem.theta), expected)


@every_problem
def test_rows_of_parameters_do_not_mix(problem: Problem) -> None:
    theta = torch.randn(4, len(problem.theta), dtype=torch.float64)
    alone = torch.stack([exact_gradient(problem, row) for row in theta])
    torch.testing.assert_close(exact_gradient(problem, theta), alone)


def test_kruskal_probabilities_of_all_traces_sum_to_one() -> None:
    theta = PROBLEMS["spanning_trees"].theta
    orders = torch.tensor(list(itertools.permutations(range(6), 3)))
    edges = torch.zeros(len(orders), 6).scatter_(1, orders, 1)
    orders = orders[torch.tensor([is_tree(x) for x in edges])]
    assert len(orders) == 96
    p = kruskal_log_prob(orders, theta.expand(len(orders), -1)).exp()
    assert p.sum().item() == pytest.approx(1)


def test_the_trace_is_the_way_of_kruskal() -> None:
    u = torch.randn(50, 6, dtype=torch.float64)
    x = max_spanning_tree(u)
    torch.testing.assert_close(PROBLEMS["spanning_trees"].solver(u), x, rtol=0, atol=0)
    order = trace(x, u)
    values = u.gather(1, order)
    assert (values[:, :-1] >= values[:, 1:]).all()
    torch.testing.assert_close(torch.zeros_like(x).scatter_(1, order, 1.0), x)


@every_problem
def test_conditional_utilities_have_the_trace_and_together_the_law(problem: Problem) -> None:
    """Traces of Gumbel utilities, and then utilities given them: again independent Gumbel variables."""
    theta = problem.theta.expand(20_000, -1)
    u = sample(theta, "gumbel")
    order = trace(problem.solver(u), u)
    again = problem.conditional(theta, order, draw_noise(theta, "gumbel"))
    assert trace(problem.solver(again), again).equal(order)
    standard = again - theta
    for column in standard.T:
        assert stats.kstest(column.numpy(), "gumbel_r").pvalue > 1e-3
    off = torch.corrcoef(standard.T) - torch.eye(len(problem.theta))
    assert off.abs().max() < 4.5 / len(theta) ** 0.5


@every_problem
def test_conditional_utilities_are_differentiable(problem: Problem) -> None:
    """A constant more in all parameters is one more in all utilities, whatever the trace is."""
    theta = problem.theta.expand(10, -1).clone().requires_grad_()
    u = sample(theta.detach(), "gumbel")
    order = trace(problem.solver(u), u)
    again = problem.conditional(theta, order, draw_noise(theta.detach(), "gumbel"))
    (slopes,) = torch.autograd.grad(again[:, 0].sum(), theta)
    torch.testing.assert_close(slopes.sum(-1), torch.ones(10).double())


@every_problem
def test_the_probability_of_a_vertex_does_not_depend_on_the_order_it_is_given_in(problem: Problem) -> None:
    items = problem.vertices.nonzero()[:, 1].view(len(problem.vertices), -1)
    theta = problem.theta.expand(len(items), -1)
    forwards = log_prob_of_vertex(problem, items, theta)
    torch.testing.assert_close(forwards, log_prob_of_vertex(problem, items.flip(1), theta))
    assert forwards.exp().sum().item() == pytest.approx(1)


def test_random_losses_have_unit_spread() -> None:
    for name in ("k_subsets", "spanning_trees"):
        assert PROBLEMS[name].loss(PROBLEMS[name].vertices).std().item() == pytest.approx(1)
