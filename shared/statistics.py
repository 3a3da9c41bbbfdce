"""Means, spreads and Student intervals of a few numbers, such as one result for each training seed."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from scipy.special import stdtrit

__all__ = [
    "Interval",
    "mean",
    "paired_differences",
    "paired_interval",
    "standard_deviation",
    "student_interval",
    "t_quantile",
]


class Interval(NamedTuple):
    """A closed interval, in the unit of the values that it was made from."""

    low: float
    high: float


def mean(values: Sequence[float]) -> float:
    """Arithmetic mean, m = (1/n) sum_i x_i.

    Raises:
        ValueError: there are no values.
    """
    if not values:
        raise ValueError("the mean of no values is not defined")
    # A sum of equal values may round: keep the mean of a constant equal to it, so that its spread is exactly zero.
    return values[0] if min(values) == max(values) else math.fsum(values) / len(values)


def standard_deviation(values: Sequence[float]) -> float:
    """Standard deviation of the sample, s = sqrt((1/(n-1)) sum_i (x_i - m)^2).

    Raises:
        ValueError: there are fewer than two values.
    """
    if len(values) < 2:
        raise ValueError(f"a standard deviation needs two values, got {len(values)}")
    centre = mean(values)
    return math.sqrt(math.fsum((value - centre) ** 2 for value in values) / (len(values) - 1))


def t_quantile(probability: float, degrees: int) -> float:
    """Quantile of Student's t distribution: the t with P(T <= t) = probability at `degrees` degrees of freedom."""
    if not 0.0 < probability < 1.0 or degrees < 1:
        raise ValueError(f"no t quantile for probability {probability} and {degrees} degrees of freedom")
    return float(stdtrit(degrees, probability))


def student_interval(values: Sequence[float], level: float = 0.95) -> Interval:
    """Two-sided Student interval of the mean, m +- t_{(1+level)/2, n-1} s / sqrt(n).

    Values that are all equal give the point itself. (Student 1908, The probable error of a mean.)

    Raises:
        ValueError: there are fewer than two values.
    """
    half = (
        t_quantile((1.0 + level) / 2.0, max(len(values) - 1, 1)) * standard_deviation(values) / math.sqrt(len(values))
    )
    centre = mean(values)
    return Interval(centre - half, centre + half)


def paired_differences(first: Mapping[str, float], second: Mapping[str, float]) -> dict[str, float]:
    """The differences d_k = first_k - second_k over the keys (seeds) that both have, in the order of `first`."""
    return {key: first[key] - second[key] for key in first if key in second}


def paired_interval(first: Mapping[str, float], second: Mapping[str, float], level: float = 0.95) -> Interval:
    """Student interval of the mean paired difference, `student_interval` of d_k = first_k - second_k.

    Pairing takes out what a seed does to both arms alike (common random numbers).

    Raises:
        ValueError: fewer than two keys are common.
    """
    return student_interval(list(paired_differences(first, second).values()), level)
