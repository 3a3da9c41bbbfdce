"""ListOps: nested list operations whose value is the class and whose parse tree is the latent structure to be found.

The grammar is that of Nangia and Bowman (2018): an expression is a digit, or an operator with 2 to 5 arguments. As in
Paulus et al. (2020, section 8.2) the sum modulo 10 is left out, and length and depth are bounded, so that a graph
network with a fixed number of rounds can compute every value. A token is a digit, an operator with its opening
bracket, or a closing bracket. The gold graph joins an operator to each of its arguments and to its closing bracket: an
arborescence on all tokens, with the root at token 0.

Examples come in blocks of `BLOCK`, each a pure function of (seed, split, number of the block), with every class equally
often. Two splits or two seeds could share an expression by chance; among 100,000 and 10,000 hardly any are.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

Split = Literal["train", "validation", "test"]

OPERATORS = ("MIN", "MAX", "MED", "SM")
#: What stands for each token id; a digit's id is its value.
VOCABULARY = (*"0123456789", *(f"[{name}" for name in OPERATORS), "]", "<pad>")
CLOSE, PADDING = VOCABULARY.index("]"), VOCABULARY.index("<pad>")
CLASSES = 10
#: Examples that are drawn together; a hundred of each class.
BLOCK = 1000
#: `heads` of token 0, which has none, and of padding.
NO_HEAD = -1
_FIRST_OPERATOR = 10
_FEWEST, _MOST = 2, 5


@dataclass(frozen=True)
class Limits:
    """Which expressions are drawn: all others that the grammar gives are thrown away.

    Attributes:
        operators: names out of `OPERATORS`, equally likely.
        operator_probability: of a nested operator in the place of a digit.
        shortest: fewest tokens.
        longest: most tokens.
        deepest: most operators around a digit; the number of rounds that a graph network needs.

    Raises:
        ValueError: an unknown operator, or limits that no expression keeps.
    """

    operators: tuple[str, ...] = ("MIN", "MAX", "MED")
    operator_probability: float = 0.25
    shortest: int = 10
    longest: int = 50
    deepest: int = 5

    def __post_init__(self) -> None:
        unknown = [name for name in self.operators if name not in OPERATORS]
        if unknown or not self.operators:
            raise ValueError(f"operators are some of {', '.join(OPERATORS)}, got {self.operators}")
        largest = 1
        for _ in range(self.deepest):
            largest = 2 + _MOST * largest
        if not 0 < self.operator_probability < 1:
            raise ValueError(f"operator_probability lies in (0, 1), got {self.operator_probability}")
        if self.deepest < 1 or self.longest < 2 + _FEWEST or not self.shortest <= min(self.longest, largest):
            raise ValueError(f"no expression has {self.shortest}..{self.longest} tokens and depth <= {self.deepest}")


#: The limits of the paper as far as they are known, and a depth that five rounds of messages can cover.
PUBLISHED = Limits()


@dataclass(frozen=True)
class Examples:
    """Expressions, padded on the right; for a batch see `take`.

    Attributes:
        tokens: ids (N, T), `PADDING` after the end.
        lengths: tokens of each expression, int64 (N,).
        heads: index (N, T) of the operator to which a token belongs; `NO_HEAD` at token 0 and at padding.
        labels: values of the expressions, int64 (N,).
    """

    tokens: Tensor
    lengths: Tensor
    heads: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: Tensor) -> "Examples":
        """The rows `indices` with int64 entries, padded only to the longest of them."""
        longest = int(self.lengths[indices].max())
        return Examples(
            self.tokens[indices, :longest].long(),
            self.lengths[indices],
            self.heads[indices, :longest].long(),
            self.labels[indices],
        )


def apply(operator: int, values: Sequence[int]) -> int:
    """The value of an operator's token id on digits; the median of an even number is the rounded-down mean of two.

    Raises:
        ValueError: the token is no operator.
    """
    name = VOCABULARY[operator][1:]
    if name == "MIN":
        return min(values)
    if name == "MAX":
        return max(values)
    if name == "MED":
        ordered = sorted(values)
        return (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) // 2
    if name == "SM":
        return sum(values) % 10
    raise ValueError(f"{VOCABULARY[operator]!r} is no operator")


def parse(text: str) -> list[int]:
    """Token ids of an expression written with spaces, such as "[MAX 2 9 [MIN 4 7 ] 0 ]".

    Raises:
        ValueError: an unknown token.
    """
    return [VOCABULARY.index(token) for token in text.split()]


def show(tokens: Sequence[int]) -> str:
    """The text of token ids, without padding."""
    return " ".join(VOCABULARY[token] for token in tokens if token != PADDING)


def analyse(tokens: Sequence[int]) -> tuple[int, list[int]]:
    """Value and `heads` of one expression without padding.

    Raises:
        ValueError: brackets that do not match, or an operator without arguments.
    """
    heads: list[int] = []
    open_: list[tuple[int, list[int]]] = [(NO_HEAD, [])]
    for i, token in enumerate(tokens):
        heads.append(open_[-1][0])
        if _FIRST_OPERATOR <= token < CLOSE:
            open_.append((i, []))
        elif token == CLOSE:
            operator, values = open_.pop()
            if not open_ or not values:
                raise ValueError(f"a bracket closes nothing at token {i} of {show(tokens)!r}")
            open_[-1][1].append(apply(tokens[operator], values))
        else:
            open_[-1][1].append(token)
    if len(open_) != 1 or len(open_[0][1]) != 1:
        raise ValueError(f"{show(tokens)!r} is not one expression")
    return open_[0][1][0], heads


def examples(split: Split, count: int, *, seed: int = 0, limits: Limits = PUBLISHED, start: int = 0) -> Examples:
    """Examples start, ..., start + count - 1 of a split that never ends: example i is the same whatever the count.

    Args:
        split: training, validation and test examples are drawn from different streams.
        count: how many; a multiple of `BLOCK` holds all classes equally often when `start` is one, too.
        seed: of the data.
        limits: which expressions are kept.
        start: number of the first one.

    Returns:
        tokens uint8 and heads int16 of shape (count, limits.longest).

    Raises:
        ValueError: a negative number.
    """
    if count < 0 or start < 0:
        raise ValueError(f"cannot draw examples {start} to {start + count}")
    tokens = torch.full((count, limits.longest), PADDING, dtype=torch.uint8)
    heads = torch.full((count, limits.longest), NO_HEAD, dtype=torch.int16)
    lengths = torch.zeros(count, dtype=torch.int64)
    labels = torch.zeros(count, dtype=torch.int64)
    for block in range(start // BLOCK, -(-(start + count) // BLOCK)):
        first = block * BLOCK - start
        part = slice(max(first, 0), min(first + BLOCK, count))
        inside = slice(part.start - first, part.stop - first)
        rows = _block(split, block, seed, limits)
        for target, source in zip((tokens, heads, lengths, labels), rows, strict=True):
            target[part] = source[inside]
    return Examples(tokens, lengths, heads, labels)


@lru_cache(maxsize=2)
def _block(split: Split, block: int, seed: int, limits: Limits) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Tokens, heads, lengths and labels of one block."""
    draw = random.Random(f"listops {seed} {split} {block}")
    wanted = [BLOCK // CLASSES] * CLASSES
    kept: list[tuple[list[int], list[int], int]] = []
    while len(kept) < BLOCK:
        tokens: list[int] = []
        heads: list[int] = []
        # A lone digit is too short, so the outermost node may as well be an operator at once.
        value = _grow(draw, limits, tokens, heads, NO_HEAD, 1)
        if value is not None and limits.shortest <= len(tokens) <= limits.longest and wanted[value]:
            wanted[value] -= 1
            kept.append((tokens, heads, value))
    # The last ones drawn are all of the rarest class.
    draw.shuffle(kept)
    return (
        torch.tensor([tokens + [PADDING] * (limits.longest - len(tokens)) for tokens, _, _ in kept], dtype=torch.uint8),
        torch.tensor([heads + [NO_HEAD] * (limits.longest - len(heads)) for _, heads, _ in kept], dtype=torch.int16),
        torch.tensor([len(tokens) for tokens, _, _ in kept]),
        torch.tensor([value for _, _, value in kept]),
    )


def _grow(
    draw: random.Random, limits: Limits, tokens: list[int], heads: list[int], head: int, depth: int
) -> int | None:
    """Append an operator with its arguments and give its value; None once a limit is passed, and the rest is moot."""
    here = len(tokens)
    if depth > limits.deepest or here >= limits.longest:
        return None
    operator = _FIRST_OPERATOR + OPERATORS.index(limits.operators[int(draw.random() * len(limits.operators))])
    tokens.append(operator)
    heads.append(head)
    values = []
    for _ in range(_FEWEST + int(draw.random() * (_MOST - _FEWEST + 1))):
        if draw.random() < limits.operator_probability:
            value = _grow(draw, limits, tokens, heads, here, depth + 1)
            if value is None:
                return None
        else:
            value = int(draw.random() * 10)
            tokens.append(value)
            heads.append(here)
        values.append(value)
    tokens.append(CLOSE)
    heads.append(here)
    return apply(operator, values)


def batch_by_length(lengths: Tensor, batch_size: int, seed: int, step: int, *, pool: int = 20) -> Tensor:
    """Indices (batch_size,) of batch number `step`, whose expressions are about equally long: less padding to compute.

    In each epoch a fresh permutation is cut into pools of `pool` batches, each pool is sorted by length and its batches
    are gone through in random order. The rest of an epoch that fills no batch is dropped.

    Args:
        lengths: (N,).
        batch_size: examples of a batch.
        seed: of the order.
        step: number of the batch.
        pool: batches that are sorted together; 1 gives batches of mixed lengths.

    Raises:
        ValueError: the batch is larger than the data.
    """
    per_epoch = len(lengths) // batch_size
    if per_epoch == 0:
        raise ValueError(f"a batch of {batch_size} is larger than the {len(lengths)} examples")
    order, batches = _epoch(len(lengths), seed, step // per_epoch, per_epoch, pool)
    place = int(batches[step % per_epoch])
    first = place // pool * pool
    members = order[first * batch_size : min(first + pool, per_epoch) * batch_size]
    ordered = members[lengths[members].argsort(stable=True)]
    return ordered[(place - first) * batch_size :][:batch_size]


@lru_cache(maxsize=2)
def _epoch(n: int, seed: int, epoch: int, per_epoch: int, pool: int) -> tuple[Tensor, Tensor]:
    """The order of the examples, and of the batches."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    return torch.randperm(n, generator=generator), torch.randperm(per_epoch, generator=generator)


def gold_edges(heads: Tensor) -> Tensor:
    """The adjacency (B, T, T) of heads (B, T): 1 at [i, j] where token i is the operator of token j; float32.

    An expression of n tokens has n - 1 edges; row and column of padding are 0.
    """
    positions = torch.arange(heads.shape[-1], device=heads.device)
    return (heads.unsqueeze(-2) == positions.unsqueeze(-1)).float()


def edge_agreement(edges: Tensor, gold: Tensor) -> tuple[Tensor, Tensor]:
    """Precision and recall (B,) of 0/1 edges against gold ones, both (B, T, T); without any edge they are 0.

    For undirected structures give both matrices symmetric: each edge then counts twice everywhere.
    """
    common = (edges * gold).sum((-2, -1))
    return common / edges.sum((-2, -1)).clamp_min(1), common / gold.sum((-2, -1)).clamp_min(1)
