"""Judging the `compare` expressions of claims against measured numbers.

Every comparison a < b is judged by the interval of the mean difference d = a - b, paired over the seeds that all its
operands have; `shared.expressions` has the grammar.
"""

import ast
import math
import operator
from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

from shared.errors import UserError
from shared.expressions import Comparison, Operand, operands, operands_of, shown, value
from shared.statistics import Interval, mean, student_interval

__all__ = ["Judgement", "Metrics", "Verdict", "judge"]

Verdict = Literal["reproduced", "not reproduced", "inconclusive", "not attempted"]

#: metric -> arm -> key -> number, as in metrics.json; the key is "exact" or a seed such as "seed0".
Metrics = Mapping[str, Mapping[str, Mapping[str, float]]]

FEWEST_SEEDS = 3
NORMAL_95 = 1.96

_MIRRORED = {"<": ">", "<=": ">=", ">": "<", ">=": "<="}
_HOLDS: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


class Judgement(NamedTuple):
    """What the measured numbers say about a comparison."""

    verdict: Verdict
    ours: dict[str, float]  # operand -> its mean over the keys that were used
    interval: Interval | None  # of the difference, or of x in abs(x) <= tolerance
    n: int  # seeds (or 1) behind the interval
    spread_over: str
    why: str


def judge(comparisons: tuple[Comparison, ...], metrics: Metrics, spread_over: str = "training seeds") -> Judgement:
    """Judge a whole expression: reproduced if every comparison is, not reproduced if one is not, else inconclusive.

    The interval, n and spread are those of the comparison that decides: the first one with the expression's verdict.
    Every operand must be in `metrics`.

    Args:
        comparisons: from `parse`.
        metrics: metric -> arm -> key -> number.
        spread_over: what the keys of the operands stand for.

    Raises:
        UserError: an operand mixes "exact" with seeds, or holds no number.
    """
    parts = [_judge_one(comparison, metrics, spread_over) for comparison in comparisons]
    verdicts = [part.verdict for part in parts]
    order: tuple[Verdict, ...] = ("not reproduced", "inconclusive", "reproduced")
    verdict = next(candidate for candidate in order if candidate in verdicts)
    decisive = parts[verdicts.index(verdict)]
    ours = {name: number for part in reversed(parts) for name, number in part.ours.items()}
    ordered = {str(name): ours[str(name)] for name in operands(comparisons) if str(name) in ours}
    return decisive._replace(verdict=verdict, ours=ordered, why="; ".join(part.why for part in parts))


def _judge_one(comparison: Comparison, metrics: Metrics, spread_over: str) -> Judgement:
    """Judge one comparison; see the module's text for the rules."""
    names = operands((comparison,))
    values = {name: _checked(name, metrics) for name in names}
    seeded = [name for name in names if "exact" not in values[name]]
    keys = [key for key in (values[seeded[0]] if seeded else ()) if all(key in values[name] for name in seeded)]
    if seeded and not keys:
        return Judgement("inconclusive", {}, None, 0, spread_over, f"no seed is common to {', '.join(map(str, names))}")
    used = keys if seeded else ["exact"]
    points = [{name: values[name].get("exact", values[name].get(key, math.nan)) for name in names} for key in used]
    ours = {str(name): mean([point[name] for point in points]) for name in names}

    quantity, tolerance, relation = _quantity(comparison, seeded)
    try:
        differences = [value(quantity, point) for point in points]
        bound = 0.0 if tolerance is None else value(tolerance, points[0])
        if not all(map(math.isfinite, [*differences, bound])):
            raise ZeroDivisionError
        interval, over = _interval(quantity, differences, points[0], used, seeded, metrics, spread_over)
    except ZeroDivisionError:
        return Judgement("inconclusive", ours, None, len(used), spread_over, f"{shown(quantity)} is not finite")

    told = f"{shown(quantity)} = {mean(differences):.4g}"
    lost = sorted({key for name in seeded for key in values[name]} - set(used))
    left_out = f" ({', '.join(lost)} left out: not measured for every arm)" if lost else ""
    if interval is None:
        why = f"{told}, too few seeds: {len(used)} of at least {FEWEST_SEEDS}{left_out}"
        return Judgement("inconclusive", ours, None, len(used), over, why)
    if seeded:
        span = f"[{interval.low:.4g}, {interval.high:.4g}]"
        why = f"{told}, 95 % interval {span}, n = {len(used)}, spread over {over}{left_out}"
    else:
        why = f"{told}, an exact number"
    if tolerance is None:
        return Judgement(_side(interval, relation, exact=not seeded), ours, interval, len(used), over, why)
    why += f"; the claim asks |x| {relation} {bound:.4g}"
    return Judgement(_within(interval, relation, bound), ours, interval, len(used), over, why)


def _quantity(comparison: Comparison, seeded: list[Operand]) -> tuple[ast.expr, ast.expr | None, str]:
    """What the interval is made of; the tolerance, where abs(x) is compared with a fixed number; the relation."""
    left, relation, right = comparison
    for side, other, turned in ((left, right, relation), (right, left, _MIRRORED[relation])):
        if isinstance(side, ast.Call) and not set(operands_of(other)) & set(seeded):
            return side.args[0], other, turned
    if isinstance(right, ast.Constant) and right.value == 0:
        return left, None, relation
    return ast.BinOp(left, ast.Sub(), right), None, relation


def _interval(
    quantity: ast.expr,
    differences: list[float],
    point: Mapping[Operand, float],
    used: list[str],
    seeded: list[Operand],
    metrics: Metrics,
    spread_over: str,
) -> tuple[Interval | None, str]:
    """The interval of the mean and what it spreads over; None when nothing tells the spread."""
    if not seeded:
        return Interval(differences[0], differences[0]), "nothing: exact"
    if len(differences) >= FEWEST_SEEDS:
        return student_interval(differences), spread_over
    if len(differences) == 1:
        error = _combined_error(quantity, point, used[0], seeded, metrics)
        if error is not None:
            return Interval(differences[0] - NORMAL_95 * error, differences[0] + NORMAL_95 * error), "test images"
    return None, spread_over


def _combined_error(
    quantity: ast.expr, point: Mapping[Operand, float], key: str, seeded: list[Operand], metrics: Metrics
) -> float | None:
    """Standard error of `quantity` from those of its operands, sqrt(sum_i (df/dx_i)^2 e_i^2); None when one is unknown.

    The operands' errors are taken as independent. df/dx_i e_i is half the swing of f over x_i +- e_i: exact where f is
    linear. (Arms that share their test images err alike, so that a difference is surer than this says.)
    """
    total = 0.0
    for name in (name for name in operands_of(quantity) if name in seeded):
        error = metrics.get(f"{name.metric}_standard_error", {}).get(name.arm, {}).get(key)
        if error is None:
            return None
        up = value(quantity, {**point, name: point[name] + error})
        down = value(quantity, {**point, name: point[name] - error})
        total += ((up - down) / 2.0) ** 2
    return math.sqrt(total)


def _side(interval: Interval, relation: str, exact: bool) -> Verdict:
    """Which side of zero the interval lies on; an exact number decides by itself, runs that never differ do not."""
    holds = _HOLDS[relation]
    if holds(interval.low, 0.0) and holds(interval.high, 0.0):
        return "reproduced"
    if exact:
        return "not reproduced"
    return "inconclusive" if interval.low <= 0.0 <= interval.high else "not reproduced"


def _within(interval: Interval, relation: str, tolerance: float) -> Verdict:
    """Whether |x| relates to the tolerance as asked over the whole interval of x."""
    holds = _HOLDS[relation]
    farthest = max(abs(interval.low), abs(interval.high))
    nearest = 0.0 if interval.low <= 0.0 <= interval.high else min(abs(interval.low), abs(interval.high))
    if holds(nearest, tolerance) and holds(farthest, tolerance):
        return "reproduced"
    return "inconclusive" if holds(nearest, tolerance) or holds(farthest, tolerance) else "not reproduced"


def _checked(name: Operand, metrics: Metrics) -> Mapping[str, float]:
    values = metrics[name.metric][name.arm]
    if not values:
        raise UserError(f"metrics: {name} holds no number")
    if "exact" in values and len(values) > 1:
        raise UserError(f'metrics: {name} mixes "exact" with {", ".join(key for key in values if key != "exact")}')
    return values
