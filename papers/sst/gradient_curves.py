"""Training by each estimator at an equal number of evaluations of the loss, with the exact expected loss as its curve.

The parameters of the utilities of one of the problems start at 0 and follow Adam. Many trainings, one for each learning
rate and seed, are the rows of one tensor.
"""

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor

from papers.sst import estimators
from papers.sst.gradient_problems import Problem, exact_gradient, expected_loss
from papers.sst.gradient_study import DECAY, Arm, controlled, score_arm, softmax_trick
from papers.sst.gradient_study import implicit as implicit_mle

__all__ = ["EVALUATIONS", "RATES", "chosen_curve", "curves", "gap_percent", "training_arms"]

#: Of the loss, in a step.
EVALUATIONS = 12
#: Learning rates of Adam, of which each arm has its best.
RATES = (0.03, 0.1, 0.3, 1.0)


class MovingAverage:
    """The exponential moving average of the losses of each training, as a baseline; it begins with the first mean."""

    def __init__(self) -> None:
        self.average: Tensor | None = None

    def __call__(self, loss: Tensor) -> Tensor:
        """Losses (S, R) -> the average before them, (S, R); at the first call 0."""
        mean = loss.mean(0)
        before = torch.zeros_like(mean) if self.average is None else self.average
        self.average = mean if self.average is None else DECAY * self.average + (1 - DECAY) * mean
        return before.expand_as(loss)


def training_arms() -> Mapping[str, Arm | None]:
    """The estimators, new ones as a baseline has a memory; None is the exact gradient."""
    n = EVALUATIONS
    relaxed = {f"relaxed_t{t:g}": _relaxed(t, "relaxed") for t in (0.1, 0.3, 0.5, 1.0, 2.0)}
    return {
        "exact": None,
        "reinforce_utilities": score_arm("utilities", samples=n),
        "reinforce_trace": score_arm("trace", samples=n),
        "reinforce_moving_average": score_arm("trace", MovingAverage(), n),
        "reinforce_leave_one_out": score_arm("trace", estimators.mean_of_others, n),
        "rebar_t0.5": Arm(partial(controlled, temperature=0.5, scale=1.0), n // 3, n),
        **relaxed,
        "straight_through_t1": _relaxed(1.0, "straight_through"),
        "implicit_mle_h1": Arm(partial(implicit_mle, step=1.0), n, n),
    }


def _relaxed(temperature: float, mode: estimators.Mode) -> Arm:
    return Arm(partial(softmax_trick, temperature=temperature, mode=mode), EVALUATIONS, EVALUATIONS)


def curves(problem: Problem, arm: Arm | None, seeds: int, steps: int, every: int, generator: torch.Generator) -> Tensor:
    """Expected losses (rates, seeds, points) before training and after each `every` of `steps` steps."""
    rates = torch.tensor(RATES, dtype=torch.float64).repeat_interleave(seeds).unsqueeze(1)
    theta = torch.zeros(len(rates), len(problem.theta), dtype=torch.float64)
    first, second = torch.zeros_like(theta), torch.zeros_like(theta)
    found = [expected_loss(problem, theta)]
    for step in range(1, steps + 1):
        gradient = exact_gradient(problem, theta) if arm is None else arm.estimate(problem, theta, generator)
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient.square()
        direction = (first / (1 - 0.9**step)) / ((second / (1 - 0.999**step)).sqrt() + 1e-8)
        theta = theta - rates * direction
        if step % every == 0:
            found.append(expected_loss(problem, theta))
    return torch.stack(found, -1).view(len(RATES), seeds, -1)


def gap_percent(problem: Problem, losses: Tensor) -> Tensor:
    """What is left of the way from the first expected loss to the lowest loss of a vertex, in percent."""
    least = problem.loss(problem.vertices).min()
    first = expected_loss(problem, torch.zeros_like(problem.theta))
    return 100 * (losses - least) / (first - least)


def chosen_curve(
    problem: Problem, name: str, seeds: int, steps: int, every: int, streams: tuple[torch.Generator, torch.Generator]
) -> tuple[Tensor, float]:
    """Curves (seeds, points) in percent of the first gap, and the learning rate of Adam that made them.

    The rate has the lowest mean over a whole curve and `seeds` trial runs, with random numbers of the first stream;
    what is told comes from other runs, with those of the second one.
    """
    different = 1 if training_arms()[name] is None else seeds  # exact gradients make equal curves
    trial = curves(problem, training_arms()[name], different, steps, every, streams[0]).mean((1, 2))
    best = int(trial.argmin())
    told = curves(problem, training_arms()[name], different, steps, every, streams[1])[best]
    return gap_percent(problem, told).expand(seeds, -1), RATES[best]
