"""Estimators of the gradient of an expected loss on equal terms: bias, variance, and cost in evaluations of the loss.

An arm makes one estimate from a few samples. Parameters are (R, n), one row for each of R estimates, and samples are
(S, R, n): the same functions serve a study of R estimates at one place and R trainings side by side.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from scipy.signal import lfilter
from torch import Tensor

from papers.sst import estimators
from papers.sst.gradient_problems import Problem, exact_gradient, log_prob_of_vertex, trace
from papers.sst.utilities import draw_noise, log_density

__all__ = ["ARMS", "TEMPERATURES", "Arm", "Baseline", "measure", "no_baseline", "score_arm", "tuned_control"]

TEMPERATURES = (0.1, 0.3, 0.5, 1.0, 2.0)
STEPS = (0.1, 1.0, 10.0)
#: Of the moving average.
DECAY = 0.99
#: Estimates at a time: they and what they need fit into a processor's cache.
CHUNK = 10_000

#: Losses (S, R) -> baselines (S, R).
Baseline = Callable[[Tensor], Tensor]
#: Problem, parameters (S, R, n) with gradient, standard noise, generator -> surrogate (S, R) of the estimates.
Surrogate = Callable[[Problem, Tensor, Tensor, torch.Generator], Tensor]


@dataclass(frozen=True)
class Arm:
    """An estimator.

    Attributes:
        surrogate: its gradient in the parameters is the estimate.
        samples: utilities drawn for one estimate.
        evaluations: of the loss, or of its gradient, for one estimate.
    """

    surrogate: Surrogate
    samples: int = 1
    evaluations: int = 1

    def estimate(self, problem: Problem, theta: Tensor, generator: torch.Generator) -> Tensor:
        """One estimate (R, n) for each row of theta (R, n)."""
        theta = theta.detach().expand(self.samples, *theta.shape).clone().requires_grad_()
        noise = draw_noise(theta.detach(), "gumbel", generator=generator)
        (gradient,) = torch.autograd.grad(self.surrogate(problem, theta, noise, generator).sum(), theta)
        return gradient.mean(0)


def no_baseline(loss: Tensor) -> Tensor:
    """Zeros."""
    return torch.zeros_like(loss)


def running_average(loss: Tensor) -> Tensor:
    """The exponential moving average before each estimate, of the R estimates as one sequence; it begins at the first.

    An average that knows the present loss would be a bias, so the first estimate has the baseline 0.
    """
    sequence = loss.mean(0).numpy()
    start = [DECAY * sequence[0]]
    after, _ = lfilter([1 - DECAY], [1, -DECAY], sequence, zi=start)
    before = torch.from_numpy(after).roll(1)
    before[0] = 0
    return before.expand_as(loss)


def score(problem: Problem, theta: Tensor, noise: Tensor, _: torch.Generator, of: str, baseline: Baseline) -> Tensor:
    """REINFORCE with the log-probability `of` the `utilities`, of the `trace`, or of the vertex `x`."""
    utilities = (theta + noise).detach()
    x = problem.solver(utilities)
    loss = problem.loss(x)
    if of == "utilities":
        log_prob = log_density(utilities, theta, "gumbel").sum(-1)
    else:
        order = trace(x, utilities)
        log_prob = problem.log_prob(order, theta) if of == "trace" else log_prob_of_vertex(problem, order, theta)
    return estimators.reinforce(loss, log_prob, baseline(loss))


def score_arm(of: str, baseline: Baseline = no_baseline, samples: int = 1) -> Arm:
    """An arm of `score`: each sample is one evaluation."""
    return Arm(partial(score, of=of, baseline=baseline), samples, samples)


def softmax_trick(
    problem: Problem, theta: Tensor, noise: Tensor, _: torch.Generator, temperature: float, mode: estimators.Mode
) -> Tensor:
    """The loss of the relaxed point, or of the vertex with the gradient of the relaxed point."""
    relaxation = partial(problem.relaxation, temperature=temperature)
    return problem.loss(estimators.forward(theta + noise, problem.solver, relaxation, mode))


def implicit(problem: Problem, theta: Tensor, noise: Tensor, _: torch.Generator, step: float) -> Tensor:
    """The loss of the vertex with the gradient of implicit maximum likelihood."""
    return problem.loss(estimators.implicit_mle(theta + noise, problem.solver, step))


def controlled(
    problem: Problem, theta: Tensor, noise: Tensor, generator: torch.Generator, temperature: float, scale: float
) -> Tensor:
    """RELAX with `scale` times the loss of the relaxed point as control variate; REBAR with `scale` 1.

    Conditioned on the trace. Three evaluations of the loss.
    """
    utilities = theta + noise
    x = problem.solver(utilities)
    order = trace(x, utilities)
    log_prob = problem.log_prob(order, theta)
    again = problem.conditional(theta, order, draw_noise(theta.detach(), "gumbel", generator=generator))
    control, conditional = (scale * problem.loss(problem.relaxation(u, temperature)) for u in (utilities, again))
    return estimators.relax(problem.loss(x), log_prob, control, conditional)


def tuned_control(problem: Problem, samples: int, generator: torch.Generator) -> tuple[float, float]:
    """Temperature and scale of the control variate with the lowest variance in a trial of `samples` estimates.

    An estimate is g - scale * h with E h = 0, so the best scale at a temperature is the regression of g on h.
    """
    best = (float("inf"), 1.0, 1.0)
    state, theta = generator.get_state(), problem.theta.expand(samples, -1)
    for temperature in TEMPERATURES:
        found = []
        for scale in (0.0, 1.0):
            generator.set_state(state)
            arm = Arm(partial(controlled, temperature=temperature, scale=scale))
            found.append(arm.estimate(problem, theta, generator))
        g, h = (values - values.mean(0) for values in (found[0], found[0] - found[1]))
        scale = ((g * h).sum() / h.square().sum()).item()
        best = min(best, ((g - scale * h).square().sum().item(), temperature, scale))
    return best[1:]


def _arms() -> dict[str, Arm]:
    found = {
        "reinforce_utilities": score_arm("utilities"),
        "reinforce_trace": score_arm("trace"),
        "reinforce_x": score_arm("x"),
        "reinforce_moving_average": score_arm("trace", running_average),
        "reinforce_mean_4": score_arm("trace", samples=4),
        "reinforce_batch_mean_4": score_arm("trace", estimators.batch_mean, 4),
        "reinforce_leave_one_out_4": score_arm("trace", estimators.mean_of_others, 4),
        "reinforce_utilities_leave_one_out_4": score_arm("utilities", estimators.mean_of_others, 4),
        "rebar_t0.5": Arm(partial(controlled, temperature=0.5, scale=1.0), evaluations=3),
    }
    for t in TEMPERATURES:
        found[f"relaxed_t{t:g}"] = Arm(partial(softmax_trick, temperature=t, mode="relaxed"))
        found[f"straight_through_t{t:g}"] = Arm(partial(softmax_trick, temperature=t, mode="straight_through"))
    return found | {f"implicit_mle_h{step:g}": Arm(partial(implicit, step=step)) for step in STEPS}


#: All but `relax`, whose control variate has to be tuned for a problem.
ARMS: Mapping[str, Arm] = _arms()


def measure(problem: Problem, arm: Arm, samples: int, generator: torch.Generator) -> dict[str, float]:
    """Error of the mean of `samples` estimates, and their spread.

    Returns:
        `bias`: norm of the mean less the exact gradient; its expectation is `bias_se` where there is no bias.
        `bias_se`: standard error of the mean, the root of the total variance over `samples`.
        `bias_z`: the largest deviation of a coordinate of the mean from the exact gradient, in standard errors.
        `variance`: total variance of an estimate, the trace of its covariance.
        `cost_variance`: that times the evaluations of the loss: the variance at equal cost.
    """
    exact = exact_gradient(problem, problem.theta)
    total, squares, done = torch.zeros_like(exact), torch.zeros_like(exact), 0
    while done < samples:
        rows = min(CHUNK, samples - done)
        errors = arm.estimate(problem, problem.theta.expand(rows, -1), generator) - exact
        total, squares, done = total + errors.sum(0), squares + errors.square().sum(0), done + rows
    mean = total / samples
    # Rounding can make the difference of two squares negative where all estimates are equal.
    variances = (squares / samples - mean.square()).clamp_min(0) * samples / (samples - 1)
    variance = variances.sum().item()
    return {
        "bias": mean.norm().item(),
        "bias_se": (variance / samples) ** 0.5,
        "bias_z": (mean.abs() / (variances / samples).sqrt().clamp_min(1e-12)).max().item(),
        "variance": variance,
        "cost_variance": variance * arm.evaluations,
    }
