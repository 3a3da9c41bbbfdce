"""ListOps: values by a second evaluator, gold edges, limits, balance; examples depend on nothing but their indices."""

import ast
import statistics
import time

import pytest
import torch
from sklearn.metrics import precision_score, recall_score

from papers.sst import listops
from papers.sst.listops import (
    BLOCK,
    CLOSE,
    NO_HEAD,
    PADDING,
    Limits,
    analyse,
    batch_by_length,
    edge_agreement,
    examples,
    gold_edges,
    parse,
    show,
)

EVERYTHING = Limits(operators=listops.OPERATORS, shortest=4, longest=400, deepest=20)


def nested(text):
    """A nested Python list from the text of an expression: the tree by Python's own parser of lists."""
    words = text.replace("[", "['").replace("['MIN", "['MIN'").replace("['MAX", "['MAX'")
    words = words.replace("['MED", "['MED'").replace("['SM", "['SM'")
    return ast.literal_eval(words.replace(" ]", "]").replace(" ", ","))


def second_opinion(tree):
    if isinstance(tree, int):
        return tree
    values = [second_opinion(branch) for branch in tree[1:]]
    function = {"MIN": min, "MAX": max, "MED": lambda v: int(statistics.median(v)), "SM": lambda v: sum(v) % 10}
    return function[tree[0]](values)


def depth(tree):
    return 0 if isinstance(tree, int) else 1 + max(depth(branch) for branch in tree[1:])


@pytest.mark.parametrize("limits", [Limits(), EVERYTHING], ids=["published", "everything"])
def test_labels_are_the_values_of_a_second_evaluator(limits):
    data = examples("train", 500, limits=limits)
    for tokens, label in zip(data.tokens.tolist(), data.labels.tolist()):
        assert second_opinion(nested(show(tokens))) == label


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("7", 7),
        ("[MAX 2 9 [MIN 4 7 ] 0 ]", 9),
        ("[MED 1 2 ]", 1),
        ("[MED 9 0 4 ]", 4),
        ("[MED 1 3 8 9 ]", 5),
        ("[SM 9 9 [SM 1 2 ] ]", 1),
        ("[MIN [MAX 3 4 ] [MED 5 6 7 ] ]", 4),
    ],
)
def test_values_by_hand(text, value):
    assert analyse(parse(text))[0] == value
    assert second_opinion(nested(text)) == value
    assert show([*parse(text), PADDING]) == text


def test_heads_by_hand():
    """A nested operator belongs to the outer one, a bracket to the operator that it closes."""
    _, heads = analyse(parse("[MAX 2 9 [MIN 4 7 ] 0 ]"))
    assert heads == [NO_HEAD, 0, 0, 0, 3, 3, 3, 0, 0]


@pytest.mark.parametrize("text", ["", "1 2", "]", "[MIN ]", "[MIN 1 2", "[MIN 1 2 ] ]", "[MIN 1 ] 3"])
def test_what_is_no_expression_is_refused(text):
    with pytest.raises(ValueError):
        analyse(parse(text))


def test_unknown_tokens_are_refused():
    with pytest.raises(ValueError):
        parse("[MEAN 1 2 ]")
    with pytest.raises(ValueError, match="no operator"):
        listops.apply(CLOSE, [1, 2])


def test_drawn_heads_are_those_of_the_text():
    data = examples("validation", 300)
    for tokens, heads, length, label in zip(data.tokens.tolist(), data.heads.tolist(), data.lengths, data.labels):
        assert analyse(tokens[:length]) == (label, heads[:length])
        assert set(tokens[length:]) <= {PADDING}
        assert set(heads[length:]) <= {NO_HEAD}


def test_gold_edges_are_an_arborescence_from_operators_to_arguments_and_bracket():
    data = examples("test", 200).take(torch.arange(200))
    gold = gold_edges(data.heads)
    operator = (data.tokens >= 10) & (data.tokens < CLOSE)
    here = torch.arange(gold.shape[-1]) < data.lengths[:, None]
    torch.testing.assert_close(gold.sum((1, 2)).long(), data.lengths - 1, rtol=0, atol=0)
    # One edge into every token but the root.
    assert torch.equal(gold.sum(1), (here & (torch.arange(gold.shape[-1]) > 0)).float())
    children = gold.sum(2)
    assert not children[~operator].any()
    # Two to five arguments, and the bracket.
    assert children[operator].unique().tolist() == [3, 4, 5, 6]
    closes = gold @ (data.tokens == CLOSE)[..., None].float()
    assert torch.equal(closes[..., 0], operator.float())
    # Five steps lead from the root to every token, none is left out.
    reached = torch.nn.functional.one_hot(torch.zeros(200, dtype=torch.int64), gold.shape[-1]).float()[:, None]
    for _ in range(5):
        reached = (reached + reached @ gold).clamp_max(1)
    assert torch.equal(reached[:, 0], here.float())


def test_limits_are_kept_and_reached():
    data = examples("train", 2000)
    assert data.lengths.min() == 10
    assert data.lengths.max() == 50
    depths = [depth(nested(show(tokens))) for tokens in data.tokens.tolist()]
    assert min(depths) == 2
    assert max(depths) == 5
    assert not (data.tokens == listops.VOCABULARY.index("[SM")).any()
    assert data.tokens.dtype == torch.uint8
    assert data.tokens.shape == (2000, 50)


def test_mean_length_without_the_rejected_classes():
    """About 19 tokens: a figure that an independent generator with the same limits gives."""
    assert examples("train", 5000).lengths.float().mean() == pytest.approx(19.0, abs=0.5)


def test_every_block_holds_every_class_equally_often():
    labels = examples("train", 3 * BLOCK).labels
    for block in labels.split(BLOCK):
        assert block.bincount().tolist() == [BLOCK // 10] * 10


def test_operators_and_arguments_have_the_probabilities_of_the_grammar():
    data = examples("train", 4 * BLOCK, limits=EVERYTHING)
    operators = torch.stack([(data.tokens == 10 + i).sum() for i in range(4)])
    assert (operators / operators.sum()).tolist() == pytest.approx([0.25] * 4, abs=0.03)
    digits = (data.tokens < 10).sum()
    nested_ones = operators.sum() - len(data)
    assert nested_ones / (digits + nested_ones) == pytest.approx(0.25, abs=0.02)
    owner = data.heads.long() + 400 * torch.arange(len(data))[:, None]
    arguments = owner[data.heads != NO_HEAD].bincount().bincount()
    assert (arguments[3:] / arguments[3:].sum()).tolist() == pytest.approx([0.25] * 4, abs=0.02)


def test_an_example_depends_on_split_index_and_seed_only():
    longer = examples("train", 1500, seed=3)
    listops._block.cache_clear()
    for start, count in ((0, 700), (999, 2), (1200, 300), (5, 0)):
        part = examples("train", count, seed=3, start=start)
        for name in ("tokens", "lengths", "heads", "labels"):
            assert torch.equal(getattr(part, name), getattr(longer, name)[start : start + count])


def test_splits_and_seeds_are_different_and_share_no_expression():
    seen = set()
    for split, seed in (("train", 0), ("validation", 0), ("test", 0), ("train", 1)):
        mine = {show(tokens) for tokens in examples(split, BLOCK, seed=seed).tokens.tolist()}
        assert len(mine) >= BLOCK - 1
        assert len(mine & seen) <= 1
        seen |= mine


def test_a_hundred_thousand_are_drawn_in_less_than_half_a_minute():
    listops._block.cache_clear()
    start = time.process_time()
    examples("train", 4000, seed=17)
    assert time.process_time() - start < 30 / 25


def test_a_batch_is_padded_to_its_own_longest():
    data = examples("train", 100)
    rows = data.lengths.argsort()[:7]
    batch = data.take(rows)
    assert len(batch) == 7
    assert batch.tokens.shape == batch.heads.shape == (7, int(data.lengths[rows].max()))
    assert batch.tokens.dtype == batch.heads.dtype == torch.int64
    assert torch.equal(batch.labels, data.labels[rows])
    assert torch.equal((batch.tokens != PADDING).sum(1), batch.lengths)


def test_batches_by_length_visit_everything_once_and_waste_little():
    lengths = examples("train", 2000).lengths
    batches = [batch_by_length(lengths, 30, 5, step, pool=7) for step in range(66)]
    visited = torch.cat(batches)
    assert len(visited) == len(visited.unique()) == 66 * 30
    assert torch.equal(batch_by_length(lengths, 30, 5, 12, pool=7), batches[12])
    next_epoch = torch.cat([batch_by_length(lengths, 30, 5, step, pool=7) for step in range(66, 132)])
    assert len(next_epoch.unique()) == 66 * 30
    assert not torch.equal(visited, next_epoch)

    def padded(parts):
        return sum(int(lengths[part].max()) * len(part) for part in parts)

    mixed = [batch_by_length(lengths, 30, 5, step, pool=1) for step in range(66)]
    assert padded(batches) < 0.7 * padded(mixed)
    with pytest.raises(ValueError, match="larger"):
        batch_by_length(lengths, 2001, 0, 0)


def test_edge_agreement_is_that_of_scikit_learn():
    edges, gold = (torch.rand(2, 6, 8, 8) < 0.2).float()
    precision, recall = edge_agreement(edges, gold)
    for i in range(6):
        assert precision[i] == pytest.approx(precision_score(gold[i].flatten(), edges[i].flatten()))
        assert recall[i] == pytest.approx(recall_score(gold[i].flatten(), edges[i].flatten()))
    assert [float(part) for part in edge_agreement(torch.zeros(1, 3, 3), gold[:1, :3, :3])] == [0, 0]


@pytest.mark.parametrize(
    "wrong",
    [
        {"operators": ("MIN", "MEAN")},
        {"operators": ()},
        {"operator_probability": 1.0},
        {"deepest": 0},
        {"deepest": 1},
        {"shortest": 30, "longest": 20},
    ],
)
def test_limits_without_expressions_are_refused(wrong):
    with pytest.raises(ValueError):
        Limits(**wrong)


def test_negative_numbers_are_refused():
    with pytest.raises(ValueError):
        examples("train", -1)
