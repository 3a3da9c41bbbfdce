"""The grammar of the claims' `compare` expressions, and the value of one at a point.

An expression joins comparisons by `and`; a comparison relates two sides by < <= > >= (chains count as several); a side
is made of `metric[arm]`, numbers, + - * /, unary minus and abs(...). Nothing else is read, and nothing is executed.
"""

import ast
import operator
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

__all__ = ["Comparison", "Operand", "operands", "operands_of", "parse", "shown", "value"]

_BINARY: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
_RELATIONS: dict[type[ast.cmpop], str] = {ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">="}
_LARGEST = 1e300


class Operand(NamedTuple):
    """One measured quantity, written `metric[arm]`."""

    metric: str
    arm: str

    def __str__(self) -> str:
        return f"{self.metric}[{self.arm}]"


class Comparison(NamedTuple):
    """Two sides and one of the relations < <= > >=."""

    left: ast.expr
    relation: str
    right: ast.expr


def parse(text: str) -> tuple[Comparison, ...]:
    """Read an expression.

    Raises:
        ValueError: it is malformed; the text says what is not allowed.
    """
    try:
        tree = ast.parse(" ".join(text.split()), mode="eval")
    except (SyntaxError, ValueError) as error:
        raise ValueError(f"not an expression ({error.args[0]})") from None
    found = tuple(_comparisons(tree.body))
    for comparison in found:
        if not operands((comparison,)):
            raise ValueError(
                f"no metric[arm] in {shown(comparison.left)} {comparison.relation} {shown(comparison.right)}"
            )
    return found


def operands(comparisons: tuple[Comparison, ...]) -> list[Operand]:
    """Every operand once, in the order of the text."""
    sides = [side for comparison in comparisons for side in (comparison.left, comparison.right)]
    return list(dict.fromkeys(name for side in sides for name in operands_of(side)))


def operands_of(node: ast.expr) -> list[Operand]:
    """The operands below a node, each once, in the order of the text."""
    found = _operand(node)
    if found is not None:
        return [found]
    below = [name for child in ast.iter_child_nodes(node) if isinstance(child, ast.expr) for name in operands_of(child)]
    return list(dict.fromkeys(below))


def value(node: ast.expr, point: Mapping[Operand, float]) -> float:
    """The number that a checked side stands for at one seed."""
    if isinstance(node, ast.BinOp):
        return _BINARY[type(node.op)](value(node.left, point), value(node.right, point))
    if isinstance(node, ast.UnaryOp):
        return -value(node.operand, point)
    if isinstance(node, ast.Call):
        return abs(value(node.args[0], point))
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        return float(node.value)
    name = _operand(node)
    if name is None:
        raise ValueError(f"{shown(node)} was not checked by parse")
    return point[name]


def shown(node: ast.expr) -> str:
    """The text of a side, in one spelling."""
    return ast.unparse(node)


def _comparisons(node: ast.expr) -> Iterator[Comparison]:
    if isinstance(node, ast.BoolOp) and isinstance(node.op, ast.And):
        for part in node.values:
            yield from _comparisons(part)
    elif isinstance(node, ast.Compare):
        sides = [node.left, *node.comparators]
        for side in sides:
            _check_side(side)
        for left, relation, right in zip(sides[:-1], node.ops, sides[1:], strict=True):
            if type(relation) not in _RELATIONS:
                raise ValueError(f"only < <= > >= compare, in {shown(node)}")
            yield Comparison(left, _RELATIONS[type(relation)], right)
    else:
        raise ValueError(f"{shown(node)} is not a comparison (comparisons are joined by `and`)")


def _check_side(node: ast.expr) -> None:
    """Refuse whatever is not on the short list of the module's text."""
    if isinstance(node, ast.BinOp) and type(node.op) in _BINARY:
        _check_side(node.left)
        _check_side(node.right)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        _check_side(node.operand)
    elif isinstance(node, ast.Call):
        if not (
            isinstance(node.func, ast.Name) and node.func.id == "abs" and len(node.args) == 1 and not node.keywords
        ):
            raise ValueError(f"the only function is abs(x), got {shown(node)}")
        _check_side(node.args[0])
    elif isinstance(node, ast.Constant) and isinstance(node.value, int | float) and not isinstance(node.value, bool):
        if abs(node.value) > _LARGEST:
            raise ValueError("a number is too large")
    elif _operand(node) is None:
        raise ValueError(f"{shown(node)} is not allowed; a quantity is written metric[arm]")


def _operand(node: ast.expr) -> Operand | None:
    """`metric[arm]`, the arm a name, a quoted text or a whole number."""
    if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name):
        if isinstance(node.slice, ast.Name):
            return Operand(node.value.id, node.slice.id)
        if isinstance(node.slice, ast.Constant) and type(node.slice.value) in (str, int):
            return Operand(node.value.id, str(node.slice.value))
    return None
