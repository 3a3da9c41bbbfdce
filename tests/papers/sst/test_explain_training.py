"""Learning to explain: relaxed and hard subsets, one training, what a network selects, the stage's plan and summary."""

import itertools
import math
from pathlib import Path

import pytest
import torch

from papers.sst import explain
from papers.sst.explain_arms import RELAXATIONS, Arm, Explainer, hard, l2x, relaxed, softsub
from papers.sst.explain_model import PADDED_SCORE, Scores
from papers.sst.explain_training import Best, Task, Trainer, evaluate, first, load_task
from papers.sst.reviews import PLANTED_WORDS, Reviews, planted_spans
from papers.sst.settings import load
from shared.errors import UserError
from shared.paths import ROOT
from shared.training.checkpoint import StateFolder
from shared.training.loop import fit

CPU = torch.device("cpu")
ALWAYS = -1.0  # seconds between saves: after every step


def scores(rows=3, words=8, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return Scores(torch.randn(rows, words, generator=draw), torch.randn(rows, words - 1, generator=draw))


def planted(train=64, held_out=20):
    parts = planted_spans("train", train), planted_spans("validation", held_out), planted_spans("test", held_out)
    return Task("planted", PLANTED_WORDS + 1, *parts)


def short_texts():
    """Texts of 6, 3 and 1 words out of 9, with ratings 0 and 1."""
    tokens = torch.tensor([[1, 2, 3, 4, 5, 6], [7, 8, 9, 0, 0, 0], [2, 0, 0, 0, 0, 0]])
    return Reviews(tokens, (tokens > 0).sum(1), torch.tensor([1.0, 0.0, 1.0]))


# --- relaxations ---


@pytest.mark.parametrize("selection", RELAXATIONS)
@pytest.mark.parametrize("k", [1, 4])
def test_relaxed_subsets_lie_in_the_cube_and_have_their_sum(selection, k):
    torch.manual_seed(0)
    x = relaxed(scores(), selection, k, 0.7)
    assert x.shape == (3, 8)
    assert x.min() >= 0
    assert x.max() <= (k if selection == "softsub" else 1) + 1e-5
    if selection == "l2x":
        assert (x.sum(-1) <= k + 1e-5).all()
        assert (x.sum(-1) >= 1 - 1e-5).all()
    else:
        torch.testing.assert_close(x.sum(-1), torch.full((3,), float(k)))


@pytest.mark.parametrize("selection", [each for each in RELAXATIONS if each != "l2x"])
def test_at_low_temperature_the_relaxation_is_the_best_subset_of_the_same_noise(selection):
    given = scores()
    torch.manual_seed(1)
    x = relaxed(given, selection, 3, 1e-3)
    torch.manual_seed(1)
    noise = -torch.empty(3, 8).exponential_().log()
    torch.testing.assert_close(x, hard(Scores(given.words + noise, given.pairs), selection, 3), atol=1e-3, rtol=0)


def test_l2x_at_low_temperature_is_the_union_of_independent_draws():
    """The chance that a word is among k draws with replacement is 1 - (1 - p)^k."""
    torch.manual_seed(2)
    logits = torch.tensor([1.0, 0.0, -1.0, 0.5])
    samples = 20_000
    share = l2x(logits.expand(samples, 4), 3, 1e-3).round().mean(0)
    expected = 1 - (1 - logits.softmax(0)) ** 3
    assert ((share - expected).abs() < 4.5 * (expected * (1 - expected) / samples).sqrt()).all()


def test_l2x_with_one_draw_and_softsub_of_one_word_are_the_gumbel_softmax():
    logits = scores().words
    torch.manual_seed(3)
    noise = -torch.empty(3, 8).exponential_().log()
    for relaxation in (l2x, softsub):
        torch.manual_seed(3)
        torch.testing.assert_close(relaxation(logits, 1, 0.6), ((logits + noise) / 0.6).softmax(-1))


def test_the_second_softmax_of_softsub_follows_the_published_recursion():
    """alpha' = alpha + log(1 - softmax(alpha / t)), by hand for three words."""
    logits, t = torch.tensor([[0.3, -0.2, 0.9]]), 0.5
    torch.manual_seed(4)
    x = softsub(logits, 2, t)[0].tolist()
    torch.manual_seed(4)
    alpha = (logits - torch.empty(1, 3).exponential_().log())[0].tolist()

    def softmax(values):
        total = sum(math.exp(value / t) for value in values)
        return [math.exp(value / t) / total for value in values]

    one = softmax(alpha)
    two = softmax([a + math.log(1 - p) for a, p in zip(alpha, one, strict=True)])
    assert x == pytest.approx([p + q for p, q in zip(one, two, strict=True)], abs=1e-5)


@pytest.mark.parametrize("selection", RELAXATIONS)
def test_hard_subsets_are_the_best_of_all(selection):
    given = scores(rows=4, words=6, seed=5)
    for words, pairs, chosen in zip(given.words, given.pairs, hard(given, selection, 3), strict=True):
        assert set(chosen.tolist()) == {0.0, 1.0}

        def value(items, words=words, pairs=pairs):
            items = list(items)
            joined = sum(pairs[i].item() for i in items if i + 1 in items) if selection == "correlated" else 0.0
            return words[items].sum().item() + joined

        best = max(value(items) for items in itertools.combinations(range(6), 3))
        assert value(chosen.nonzero().flatten().tolist()) == pytest.approx(best, abs=1e-5)


def test_without_pair_scores_correlated_subsets_are_the_marginals():
    given = scores()
    unpaired = Scores(given.words, torch.zeros_like(given.pairs))
    torch.manual_seed(6)
    x = relaxed(unpaired, "correlated", 3, 0.8)
    torch.manual_seed(6)
    torch.testing.assert_close(x, relaxed(given, "marginals", 3, 0.8))
    with pytest.raises(ValueError, match="pairs"):
        hard(Scores(given.words, None), "correlated", 3)


@pytest.mark.parametrize("selection", RELAXATIONS)
def test_padding_is_selected_only_where_words_are_missing(selection):
    given = scores()
    words = given.words.clone()
    words[:, 5:] = PADDED_SCORE
    pairs = given.pairs * (torch.arange(7) < 4)
    x = relaxed(Scores(words, pairs), selection, 4, 0.5)
    assert x[:, 5:].max() < 1e-6
    assert x.isfinite().all()
    short = relaxed(Scores(words, pairs), selection, 6, 0.5)
    assert short.isfinite().all()
    assert selection in ("l2x", "softsub") or (short[:, :5] > 0.99).all()


@pytest.mark.parametrize("selection", ["all_words", "random_words"])
def test_references_have_no_relaxation(selection):
    with pytest.raises(ValueError, match="no relaxation"):
        relaxed(scores(), selection, 2, 1.0)


# --- networks ---


def test_arms_of_a_seed_begin_with_the_same_weights():
    found = {}
    for selection in RELAXATIONS:
        torch.manual_seed(7)
        found[selection] = dict(Explainer(Arm(selection, "simple"), 30).named_parameters())
    for selection in RELAXATIONS:
        for name, value in found["l2x"].items():
            assert torch.equal(value, found[selection][name])
    assert set(found["correlated"]) - set(found["l2x"]) == {"selector.heads.pair.weight", "selector.heads.pair.bias"}


def test_references_see_all_words_or_k_random_ones():
    texts = short_texts()
    everything = Explainer(Arm("all_words"), 10).selected(texts.tokens, 3)
    torch.testing.assert_close(everything.sum(1), torch.full((3,), 3.0))
    assert torch.equal(everything > 0, texts.tokens > 0)
    model = Explainer(Arm("random_words"), 10)
    torch.manual_seed(8)
    drawn = torch.stack([model.selected(texts.tokens, 3) for _ in range(600)])
    assert (drawn.sum(-1) == 3).all()
    assert (drawn[:, 0].mean(0) - 0.5).abs().max() < 0.1
    assert torch.equal(drawn[0, 1], torch.tensor([1.0, 1, 1, 0, 0, 0]))


def test_evaluation_is_hard_repeatable_and_leaves_the_network_in_training():
    task = planted()
    torch.manual_seed(9)
    model = Explainer(Arm("categorical", "complex"), task.words)
    numbers = evaluate(model, task.test, 10)
    assert numbers == evaluate(model, task.test, 10)
    assert model.training
    model.eval()
    ratings, selected = model(task.test.tokens, 10)
    assert set(selected.unique().tolist()) == {0.0, 1.0}
    error = sum((a - b) ** 2 for a, b in zip(ratings.tolist(), task.test.ratings.tolist(), strict=True))
    assert numbers["mse_x100"] == pytest.approx(100 * error / 20, rel=1e-5)
    inside = sum(bool(task.test.spans[i, j]) for i, j in selected.nonzero().tolist())
    assert numbers["precision"] == pytest.approx(100 * inside / 200, rel=1e-5)
    assert set(evaluate(Explainer(Arm("all_words"), 10), short_texts(), 2)) == {"mse_x100", "accuracy"}


# --- training ---


@pytest.mark.parametrize("selector", ["simple", "complex"])
@pytest.mark.parametrize("selection", RELAXATIONS)
def test_steps_lower_the_loss_on_a_fixed_batch(selection, selector):
    trainer = Trainer(planted(train=32), Arm(selection, selector, 1.0), 10, 0, 40, CPU)

    def loss():
        torch.manual_seed(11)
        ratings = torch.stack([trainer.model(trainer.train.tokens, 10)[0] for _ in range(4)])
        return (ratings - trainer.train.ratings).square().mean().item()

    with torch.no_grad():
        before = loss()
    for j in range(15):
        torch.manual_seed(j)
        trainer.step(j)
    with torch.no_grad():
        assert loss() < 0.97 * before


@pytest.mark.parametrize("arm", [Arm("correlated", "complex"), Arm("random_words")], ids=lambda arm: arm.name)
def test_a_killed_run_resumes_to_the_same_bits(tmp_path, arm):
    task = planted()

    def run(folder, stop=None):
        trainer = Trainer(task, arm, 5, 3, 4, CPU)

        def step(j):
            if j == stop:
                raise KeyboardInterrupt
            return trainer.step(j)

        with StateFolder("explain", "test", root=folder) as state:
            fit(step, steps=4, seed=3, state=trainer.state(), folder=state, save_seconds=ALWAYS)
        trainer.restore_best()
        return trainer

    whole = run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "parts", stop=2)
    resumed = run(tmp_path / "parts")
    assert (resumed.best.mse_x100, resumed.best.step) == (whole.best.mse_x100, whole.best.step)
    for one, other in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_the_best_weights_are_kept_not_the_last():
    model, best = torch.nn.Linear(1, 1), Best()
    for value, error in enumerate([3.0, 1.0, 2.0]):
        torch.nn.init.constant_(model.weight, float(value))
        best.offer(model, error, value)
    assert (best.step, best.mse_x100, best.weights["weight"].item()) == (1, 1.0, 1.0)


def test_the_selector_finds_the_words_that_count():
    """One word in 20 decides the rating: a short training selects it, and the error nearly vanishes."""
    draw = torch.Generator().manual_seed(12)
    tokens = torch.randint(3, 30, (1600, 20), generator=draw)
    place = torch.randint(20, (1600, 1), generator=draw)
    good = torch.rand(1600, generator=draw) < 0.5
    tokens.scatter_(1, place, torch.where(good, 1, 2)[:, None])
    spans = torch.zeros(1600, 20, dtype=torch.bool).scatter_(1, place, True)
    texts = Reviews(tokens, torch.full((1600,), 20), good.float(), spans)
    held_out = Reviews(tokens[1500:], texts.lengths[1500:], texts.ratings[1500:], spans[1500:])
    task = Task("planted", 30, first(texts, 1500), held_out, held_out)
    trainer = Trainer(task, Arm("marginals", "simple", 1.0), 1, 0, 150, CPU)
    for j in range(150):
        torch.manual_seed(j)
        trainer.step(j)
    trainer.restore_best()
    numbers = evaluate(trainer.model, trainer.test, 1)
    assert numbers["precision"] > 95
    assert numbers["mse_x100"] < 5


# --- tasks and the stage ---


def test_samples_give_small_tasks():
    folder = ROOT / "tests" / "data"
    for name in ("planted", "sentences", "movies"):
        task = load_task(name, sample=True, folder=folder)
        assert task.train.tokens.max() < task.words
        assert 0 < len(task.test) <= 100
        assert task.sha256() == load_task(name, sample=True, folder=folder).sha256()
    assert load_task("planted", True).sha256() != task.sha256()


def test_real_texts_are_wanted_in_full():
    with pytest.raises(UserError, match="sample"):
        load_task("movies", sample=False, folder=ROOT / "tests" / "data")


def test_every_training_is_planned_once_with_settings_of_its_own():
    keys = explain.plan([0, 1])
    names = [(key.task, key.k, key.arm.name, key.seed) for key in keys]
    assert len(set(names)) == len(names)
    assert {(task, k) for task, k, name, _ in names if name == "simple_correlated"} == {
        ("planted", 5),
        ("planted", 10),
        ("planted", 15),
        ("sentences", 5),
        ("movies", 10),
    }
    assert sum(key.arm.selector == "complex" for key in keys) == 14


def test_one_run_is_remembered_and_summed_up(tmp_path, monkeypatch):
    monkeypatch.setattr(StateFolder.__init__, "__defaults__", (tmp_path, True))
    settings = load("smoke")
    keys = [key for key in explain.plan([0]) if key.task == "planted" and key.k == 10 and "co" in key.arm.name]
    keys.append(next(key for key in explain.plan([0]) if key.arm.name == "all_words" and key.task == "planted"))
    results = [explain.one_run(settings, "smoke", "code", key) for key in keys]
    monkeypatch.setattr(explain, "Trainer", None)
    assert explain.one_run(settings, "smoke", "code", keys[0]) == results[0]
    assert Path(results[0]["folder"]).parent == tmp_path
    metrics = explain.summary(keys, results)
    assert set(metrics["planted_k10_precision"]) == {key.arm.name for key in keys}
    assert set(metrics["planted_k15_mse_x100"]) == {"all_words", "mean_rating"}
    assert metrics["planted_k10_mse_x100"]["all_words"] == metrics["planted_k5_mse_x100"]["all_words"]
    task = load_task("planted", True)
    assert metrics["planted_k10_mse_x100"]["mean_rating"]["exact"] == pytest.approx(
        100 * (task.test.ratings - task.train.ratings.mean()).square().mean().item()
    )
    shown = explain.shown("planted", 10, keys, results)
    assert len(shown["items"]) == explain.EXAMPLES
    for row, item in enumerate(shown["items"]):
        begin, end = item["span"]
        assert task.test.spans[row].nonzero().flatten().tolist() == list(range(begin, end))
        assert set(item["arms"]) == {key.arm.name for key in keys[:-1]}
        assert all(len(made["selected"]) == 10 for made in item["arms"].values())
        within = sum(item["scores"][begin:end])
        assert 1 / (1 + math.exp(-within)) == pytest.approx(item["rating"], abs=0.01)
