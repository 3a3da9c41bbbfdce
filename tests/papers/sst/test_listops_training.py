"""Parsers of ListOps: structured layers against other means, arms that begin alike, steps, resuming, the stage."""

import dataclasses
import itertools
import json
from pathlib import Path

import pytest
import torch

from papers.sst import parse, spanning_trees
from papers.sst.listops import VOCABULARY, Examples, examples
from papers.sst.listops import parse as read
from papers.sst.listops_training import (
    ARMS,
    Arm,
    Parser,
    Trainer,
    hard_edges,
    limits,
    measure,
    relaxed_edges,
    target_edges,
    utilities,
)
from papers.sst.settings import load
from shared.data.batches import seed_step
from shared.errors import UserError
from shared.solvers.spanning_tree import from_matrix, max_spanning_tree, to_matrix
from shared.training.checkpoint import StateFolder
from shared.training.loop import fit

CPU = torch.device("cpu")
LATENT = [name for name, arm in ARMS.items() if arm.latent]
LENGTHS = torch.tensor([6, 4, 2, 5])
ALWAYS = -1.0  # seconds between saves: after every step


def scores(seed: int = 0, scale: float = 2.0) -> torch.Tensor:
    """Scores of four expressions of `LENGTHS`."""
    return scale * torch.randn(4, 6, 6, generator=torch.Generator().manual_seed(seed))


def drawn(split: str = "train", count: int = 60) -> Examples:
    return examples(split, count, limits=limits(12))  # type: ignore[arg-type]


def trainer(name: str = "arborescence", seed: int = 0, steps: int = 4, **changed: object) -> Trainer:
    arm = dataclasses.replace(ARMS[name], **changed)  # type: ignore[arg-type]
    return Trainer(arm, drawn(), drawn("validation", 20), steps=steps, rounds=3, seed=seed, device=CPU, curve_every=2)


def perfect(arm: Arm) -> Parser:
    """A parser whose utilities, whatever the noise, are those of the true edges: 50 there and -50 elsewhere."""

    class Known(torch.nn.Module):
        def forward(self, tokens: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
            """True edges from a stack of open operators."""
            found = torch.full((*tokens.shape, tokens.shape[1]), -50.0)
            for b, row in enumerate(tokens.tolist()):
                open_: list[int] = []
                for i, token in enumerate(row[: lengths[b]]):
                    if open_:
                        found[b, open_[-1], i] = 50.0
                        if arm.structure in ("undirected", "spanning_tree"):
                            found[b, i, open_[-1]] = 50.0
                    if VOCABULARY[token].startswith("["):
                        open_.append(i)
                    elif VOCABULARY[token] == "]":
                        open_.pop()
            return found

    parser = Parser(arm, 3, 0)
    parser.scores = Known()  # type: ignore[assignment]
    return parser


# --- limits ---


def test_limits_of_the_two_tasks() -> None:
    short, long = limits(20), limits(50)
    assert (short.shortest, short.longest, short.deepest) == (6, 20, 3)
    assert (long.shortest, long.longest, long.deepest) == (10, 50, 5)
    assert limits(21).deepest == 5


# --- structured layers ---


def test_spanning_tree_marginals_are_those_of_the_undirected_theorem() -> None:
    """Expressions of different lengths, each against Kirchhoff's theorem on its own nodes."""
    arm = Arm("spanning_tree", temperature=0.7)
    u = utilities(arm, scores())
    found = relaxed_edges(arm, u, LENGTHS)
    assert torch.equal(found, found.mT)
    for b, n in enumerate(LENGTHS.tolist()):
        expected = to_matrix(spanning_trees.marginals(from_matrix(u[b, :n, :n]).double(), 0.7))
        torch.testing.assert_close(found[b, :n, :n].double(), expected, rtol=1e-4, atol=1e-5)
        assert found[b, n:].abs().sum() == 0 == found[b, :, n:].abs().sum()


def test_hard_spanning_trees_are_those_of_prim() -> None:
    arm = Arm("spanning_tree")
    u = utilities(arm, scores())
    found = hard_edges(arm, u, LENGTHS)
    for b, n in enumerate(LENGTHS.tolist()):
        assert torch.equal(found[b, :n, :n], to_matrix(max_spanning_tree(from_matrix(u[b, :n, :n]))))


def test_one_parent_is_a_softmax_of_each_column() -> None:
    arm = Arm("one_parent", temperature=0.5)
    u = scores()
    found = relaxed_edges(arm, u, LENGTHS)
    for b, n in enumerate(LENGTHS.tolist()):
        for j in range(6):
            parents = [i for i in range(n) if i != j] if 0 < j < n else []
            expected = torch.zeros(6)
            if parents:
                expected[parents] = (u[b, parents, j] / 0.5).softmax(0)
            torch.testing.assert_close(found[b, :, j], expected)


@pytest.mark.parametrize("structure", ["undirected", "directed"])
def test_independent_edges_have_the_probability_of_their_score(structure: str) -> None:
    """The law of hard edges: P(theta + logistic noise > 0) is the sigmoid of theta, here over 40,000 edges."""
    arm = Arm(structure)  # type: ignore[arg-type]
    seed_step(0, 0)
    for theta in (-1.0, 0.5):
        u = utilities(arm, torch.full((4000, 5, 5), theta))
        found = hard_edges(arm, u, torch.full((4000,), 5))
        assert found.diagonal(dim1=1, dim2=2).sum() == 0
        rate = found.sum() / (4000 * 20)
        p = torch.tensor(theta).sigmoid()
        assert abs(rate - p) < 5 * (p * (1 - p) / 40_000).sqrt()
        if structure == "undirected":
            assert torch.equal(found, found.mT)


@pytest.mark.parametrize("name", LATENT)
def test_relaxed_structures_tend_to_the_hard_ones(name: str) -> None:
    """Error over falling temperatures, with utilities of the arm's own law; small at the end, and never growing."""
    seed_step(1, 0)
    u = utilities(ARMS[name], scores())
    hard = hard_edges(ARMS[name], u, LENGTHS)
    errors = [
        float((relaxed_edges(dataclasses.replace(ARMS[name], temperature=t), u, LENGTHS) - hard).abs().mean())
        for t in (2.0, 1.0, 0.5, 0.25)
    ]
    assert all(first > second for first, second in itertools.pairwise(errors))
    assert errors[-1] < 0.6 * errors[0]


@pytest.mark.parametrize("name", LATENT)
def test_number_of_edges(name: str) -> None:
    u = utilities(ARMS[name], scores())
    edges = hard_edges(ARMS[name], u, LENGTHS)
    assert set(edges.unique().tolist()) <= {0.0, 1.0}
    if ARMS[name].structure in ("undirected", "directed"):
        return
    directions = 2 if ARMS[name].structure == "spanning_tree" else 1
    assert torch.equal(edges.sum((1, 2)), directions * (LENGTHS - 1.0))
    relaxed = relaxed_edges(ARMS[name], u, LENGTHS).sum((1, 2))
    torch.testing.assert_close(relaxed, directions * (LENGTHS - 1.0), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", LATENT)
def test_scores_have_finite_gradients_even_when_they_are_far_apart(name: str) -> None:
    theta = scores(scale=60.0).requires_grad_()
    relaxed = relaxed_edges(ARMS[name], utilities(ARMS[name], theta), LENGTHS)
    assert relaxed.isfinite().all()
    relaxed.square().sum().backward()
    assert theta.grad is not None
    assert theta.grad.isfinite().all()


def test_waiting_times_are_common_and_the_best_parent_of_a_token_is_the_same() -> None:
    """Negative exponential utilities are an increasing function of the Gumbel ones with the same noise."""
    found = []
    for name in ("arborescence", "arborescence_negative_exponential"):
        seed_step(0, 3)
        found.append(utilities(ARMS[name], scores(scale=1.0)))
    torch.testing.assert_close(found[1], -torch.exp(-found[0]), rtol=1e-4, atol=1e-5)


def test_without_noise_the_structure_is_that_of_the_scores() -> None:
    for name in LATENT:
        first, second = (utilities(ARMS[name], scores(), "map") for _ in range(2))
        assert torch.equal(first, second), name
        noisy = utilities(ARMS[name], scores())
        assert not torch.equal(first, noisy), name
    negative = utilities(ARMS["arborescence_negative_exponential"], scores(), "map")
    torch.testing.assert_close(negative, -torch.exp(-scores()))


# --- metrics ---


@pytest.mark.parametrize("name", LATENT)
def test_true_scores_have_perfect_edges(name: str) -> None:
    found = measure(perfect(ARMS[name]), drawn("test"), "hard")
    assert found["edge_precision"] == found["edge_recall"] == found["argument_recall"] == 100


def test_edges_to_brackets_count_for_the_recall_but_not_for_that_of_arguments() -> None:
    """Every token hangs on token 0, in an expression whose inner operator has 3 children, 2 of them arguments."""
    tokens = torch.tensor([read("[MAX 2 [MIN 4 7 ] 0 ]")])
    heads = torch.tensor([[-1, 0, 0, 2, 2, 2, 0, 0]])
    one = Examples(tokens, torch.tensor([8]), heads, torch.tensor([4]))
    parser = Parser(ARMS["arborescence"], 3, 0)
    star = torch.zeros(1, 8, 8)
    star[0, 0, 1:] = 1
    parser.edges = lambda *_: star  # type: ignore[method-assign, assignment]
    found = measure(parser, one, "hard")
    assert found["edge_precision"] == found["edge_recall"] == pytest.approx(100 * 4 / 7)
    assert found["argument_recall"] == pytest.approx(100 * 3 / 5)


def test_numbers_do_not_depend_on_the_size_of_the_chunks_where_there_is_no_noise() -> None:
    for name in ("gold", "lstm", "one_parent"):
        parser = Parser(ARMS[name], 3, 0)
        assert measure(parser, drawn("test"), "map", 60) == pytest.approx(measure(parser, drawn("test"), "map", 7))
    assert set(measure(Parser(ARMS["lstm"], 3, 0), drawn("test"), "hard")) == {"accuracy"}


def test_true_edges_of_an_expression_by_hand() -> None:
    tokens = read("[MAX 2 [MIN 4 7 ] 0 ]")
    heads = torch.tensor([[-1, 0, 0, 2, 2, 2, 0, 0]])
    pairs = {(0, 1), (0, 2), (2, 3), (2, 4), (2, 5), (0, 6), (0, 7)}
    assert len(tokens) == 8
    assert {(i, j) for i, j in target_edges(ARMS["directed"], heads)[0].nonzero().tolist()} == pairs
    both = {(i, j) for i, j in target_edges(ARMS["undirected"], heads)[0].nonzero().tolist()}
    assert both == pairs | {(j, i) for i, j in pairs}


# --- training ---


@pytest.mark.parametrize("name", ARMS)
def test_steps_lower_the_loss_of_a_fixed_batch(name: str) -> None:
    """Thirty steps on one batch, each with noise of its own: the last ten against the first ten."""
    run = trainer(name, steps=10**6, learning_rate=3e-3)
    run.curve_every = 10**6
    losses = []
    for k in range(30):
        seed_step(0, k)
        # Past the warm-up of a schedule this long the learning rate is as good as constant.
        losses.append(float(run.step(60_000)["loss"]))
    assert sum(losses[-10:]) < sum(losses[:10])


@pytest.mark.parametrize("name", LATENT)
def test_scores_of_edges_learn_too(name: str) -> None:
    run = trainer(name)
    before = [p.clone() for p in run.parser.scores.parameters()]  # type: ignore[union-attr]
    seed_step(0, 0)
    run.step(0)
    after = list(run.parser.scores.parameters())  # type: ignore[union-attr]
    assert all(not torch.equal(a, b) for a, b in zip(before, after, strict=True) if b.grad is not None and b.grad.any())
    assert any(b.grad is not None and b.grad.any() for b in after)


def test_arms_of_a_seed_begin_alike() -> None:
    weights = {name: dict(trainer(name).parser.named_parameters()) for name in ARMS}
    for name in LATENT:
        assert weights[name].keys() == weights["arborescence"].keys()
        for key, value in weights[name].items():
            assert torch.equal(value, weights["arborescence"][key])
    for key, value in weights["gold"].items():
        assert torch.equal(value, weights["arborescence"][key])
    other = dict(trainer(seed=1).parser.named_parameters())
    assert not torch.equal(other["scores.bilinear.weight"], weights["arborescence"]["scores.bilinear.weight"])


@pytest.mark.parametrize("name", ["arborescence", "lstm"])
def test_a_resumed_run_ends_in_the_same_bits(name: str, tmp_path: Path) -> None:
    whole, stopped = trainer(name), trainer(name)
    with StateFolder("whole", "key", tmp_path) as folder:
        expected = parse.curve(whole, parse.train(whole, folder, "whole"))

    def broken(k: int) -> dict[str, torch.Tensor]:
        if k == 3:
            raise KeyboardInterrupt
        return stopped.step(k)

    with StateFolder("stopped", "key", tmp_path) as folder:
        with pytest.raises(KeyboardInterrupt):
            fit(broken, steps=4, seed=0, state=stopped.state(), folder=folder, record_every=2, save_seconds=ALWAYS)
        again = trainer(name)
        record = parse.train(again, folder, "again")
    assert record.interruptions == 1
    for a, b in zip(whole.parser.parameters(), again.parser.parameters(), strict=True):
        assert torch.equal(a, b)
    assert parse.curve(again, record) == expected
    assert [row["step"] for row in expected] == [2, 4]


def test_a_loss_out_of_bounds_is_one_line_that_names_the_run(tmp_path: Path) -> None:
    run = trainer("gold", learning_rate=1e30)
    with StateFolder("bad", "key", tmp_path) as folder, pytest.raises(UserError, match="gold seed 0 diverged at step"):
        parse.train(run, folder, "gold seed 0")


# --- the stage ---


def test_examples_of_the_figure() -> None:
    test = examples("test", 200, limits=limits(20))
    chosen = parse.picked(test)
    assert test.lengths[chosen].tolist() == list(parse.SHOWN_TOKENS)
    for name in ("gold", "arborescence", "spanning_tree"):
        shown = parse.shown_examples(trainer(name), test)
        for each in shown:
            assert len(each["gold"]) == len(each["edges"]) == len(each["tokens"]) - 1
            assert sum(token.startswith("[") for token in each["tokens"]) > 1, "nested"
            assert each["directed"] or all(i < j for i, j in each["edges"] + each["gold"])
        if name == "gold":
            assert all(each["gold"] == each["edges"] for each in shown)


def test_what_the_stage_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One arm of each kind for one seed, at a size far below smoke."""
    monkeypatch.setattr(parse, "runs", lambda paper, preset: tmp_path / paper / preset)
    settings = load("smoke", listops_examples=100, listops_steps=2)
    monkeypatch.setattr(parse, "StateFolder", lambda name, key: StateFolder(name, key, tmp_path / "states"))
    keys = [("arborescence", 0), ("gold", 0), ("lstm", 0)]
    results = [parse.one_run(settings, "smoke", 0, key) for key in keys]
    assert [parse.one_run(settings, "smoke", 0, key) for key in keys] == results, "remembered, seconds included"
    parse.write("smoke", keys, results)
    folder = tmp_path / "sst" / "smoke" / "parse"
    metrics = json.loads((folder / "metrics.json").read_text())
    assert set(metrics["listops_accuracy"]) == {"arborescence", "gold", "lstm"}
    assert set(metrics["listops_map_accuracy"]) == set(metrics["listops_relaxed_accuracy"]) == {"arborescence"}
    assert metrics["listops_edge_recall"]["gold"] == {"seed0": 100}
    assert "lstm" not in metrics["listops_edge_precision"]
    assert set(json.loads((folder / "examples.json").read_text())) <= {"arborescence", "gold"}
    assert (folder / "curve-lstm-seed0.csv").read_text().startswith("step,loss_nats,")


def test_an_unknown_preset_is_refused() -> None:
    with pytest.raises(UserError):
        load("desktop")
