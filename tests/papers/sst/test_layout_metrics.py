"""Metrics against scikit-learn, scipy and quadrature; the geometric rules against the reference points."""

import networkx as nx
import numpy as np
import pytest
import torch
from scipy import integrate, sparse, stats
from sklearn.metrics import precision_score, recall_score

from papers.sst import layout_metrics as metrics
from papers.sst.graph_layout import Layouts, draw_layouts


@pytest.fixture(scope="module")
def long() -> Layouts:
    return draw_layouts("test", 5_000, 20, seed=0)


@pytest.fixture(scope="module")
def short(long: Layouts) -> Layouts:
    return Layouts(long.frames[:, :, :10], long.trees)


# --- edges ---


def test_precision_and_recall_are_those_of_scikit_learn() -> None:
    predicted, true = (torch.rand(2, 200, 90) < torch.tensor([0.3, 0.2])[:, None, None]).float()
    predicted[0] = 0
    precision, recall = metrics.precision_and_recall(predicted, true)
    both = {"y_true": true.numpy(), "y_pred": predicted.numpy(), "average": None, "zero_division": 0}
    # scikit-learn calls the columns classes: graphs are put there.
    both["y_true"], both["y_pred"] = both["y_true"].T, both["y_pred"].T
    np.testing.assert_allclose(precision.numpy(), precision_score(**both))
    np.testing.assert_allclose(recall.numpy(), recall_score(**both))
    assert precision[0] == recall[0] == 0


def test_directions_of_an_undirected_graph_change_nothing() -> None:
    predicted, true = (torch.rand(2, 50, 45) < 0.2).float()
    once = metrics.edge_metrics(predicted, true)
    assert once == metrics.edge_metrics(torch.cat([predicted] * 2, 1), torch.cat([true] * 2, 1))


def test_the_better_labelling_is_kept_and_the_raw_one_told(short: Layouts) -> None:
    right = metrics.edge_metrics(short.trees, short.trees)
    assert (right.precision, right.recall, right.flipped) == (1, 1, False)
    opposite = metrics.edge_metrics(1 - short.trees, short.trees)
    assert (opposite.precision, opposite.recall, opposite.flipped) == (1, 1, True)
    assert (opposite.raw_precision, opposite.raw_recall) == (0, 0)


def test_a_tree_without_a_true_edge_looks_like_chance(short: Layouts) -> None:
    """The anti-tree: raw precision 0, but 9 of the 36 pairs outside it are edges."""
    anti = metrics.max_spanning_tree(torch.rand(len(short.trees), 45) - 2 * short.trees)
    result = metrics.edge_metrics(anti, short.trees)
    assert result.flipped
    assert result.raw_precision < 0.12
    assert 0.2 < result.precision <= 0.25


def test_soft_or_misshapen_edges_are_refused() -> None:
    with pytest.raises(ValueError, match="hard samples"):
        metrics.edge_metrics(torch.full((2, 45), 0.5), torch.zeros(2, 45))
    with pytest.raises(ValueError, match="shape"):
        metrics.edge_metrics(torch.zeros(2, 45), torch.zeros(2, 90))


# --- the bound ---


def test_likelihood_is_the_gaussian_one_without_its_constant() -> None:
    predicted, true = torch.randn(2, 3, 10, 4, 2, dtype=torch.float64)
    sigma = metrics.VARIANCE**0.5
    density = stats.norm.logpdf(true.numpy(), predicted.numpy(), sigma) - stats.norm.logpdf(0, 0, sigma)
    np.testing.assert_allclose(metrics.nll_nats(predicted, true).numpy(), -density.sum((1, 2, 3)) / 10)
    with pytest.raises(ValueError, match="shape"):
        metrics.nll_nats(predicted, true[:, :, :1])


@pytest.mark.parametrize("location", [-1.5, 0.0, 0.7, 3.0])
def test_divergence_of_gumbels_by_quadrature(location: float) -> None:
    p, q = stats.gumbel_r(location), stats.gumbel_r(0)
    expected, _ = integrate.quad(lambda u: p.pdf(u) * (p.logpdf(u) - q.logpdf(u)), location - 4, location + 40)
    value = metrics.gumbel_kl_nats(torch.tensor(location, dtype=torch.float64)).item()
    assert value == pytest.approx(expected, abs=1e-9)
    if location == 0.7:
        assert value == pytest.approx(0.196585, abs=1e-6)


def test_divergence_is_positive_near_zero_in_float32() -> None:
    small = metrics.gumbel_kl_nats(torch.tensor([1e-5, -1e-5]))
    assert (small >= 0).all()


def test_divergence_counted_once_and_twice() -> None:
    """Both directions of symmetric logits hold every utility twice, as the released code counts them."""
    logits = torch.randn(7, 45, dtype=torch.float64)
    once = metrics.utility_kl_nats(logits, 10)
    torch.testing.assert_close(metrics.utility_kl_nats(torch.cat([logits, logits], 1)[..., None], 10), 2 * once)
    torch.testing.assert_close(once, metrics.gumbel_kl_nats(logits).sum(1) / 10)
    bound = metrics.elbo(torch.full((7,), 500.0), once)
    assert bound.elbo_nats == pytest.approx(-500 - once.mean().item())
    assert bound.elbo_double_kl_nats == pytest.approx(bound.elbo_nats - bound.kl_nats)


# --- geometry ---


def test_nearest_tree_is_that_of_scipy(short: Layouts) -> None:
    trees = metrics.nearest_tree(short.frames[:20])
    first, second = np.triu_indices(10, 1)
    for frames, tree in zip(short.frames[:20], trees, strict=True):
        last = frames[:, -1].double().numpy()
        distance = np.linalg.norm(last[:, None] - last, axis=-1)
        other = sparse.csgraph.minimum_spanning_tree(distance).toarray()
        assert ((other + other.T)[first, second] > 0).tolist() == tree.bool().tolist()


def test_rules_choose_as_many_edges_as_a_tree(short: Layouts) -> None:
    for rule in (metrics.nearest_tree, metrics.closest_pairs, metrics.approaching_tree):
        assert (rule(short.frames[:100]).sum(1) == 9).all()
    tree = nx.empty_graph(10)
    pairs = torch.triu_indices(10, 10, 1).T[metrics.approaching_tree(short.frames[:1])[0].bool()]
    tree.add_edges_from(pairs.tolist())
    assert nx.is_tree(tree)


#: Measured twice with other programs on 5,000 graphs each; their mean, and their sampling error beside ours.
REFERENCE = {
    10: {"nearest_tree": 0.815, "closest_pairs": 0.7385, "approaching_tree": 0.4045, "persistence_nll_nats": 2836.5},
    20: {"nearest_tree": 0.884, "closest_pairs": 0.8125, "approaching_tree": 0.4035, "persistence_nll_nats": 5450.5},
}


def test_reference_points(short: Layouts, long: Layouts) -> None:
    for layouts in (short, long):
        frames, found = layouts.frames, metrics.heuristics(layouts)
        expected = REFERENCE[frames.shape[2]]
        for name in ("nearest_tree", "closest_pairs", "approaching_tree"):
            each, _ = metrics.precision_and_recall(getattr(metrics, name)(frames), layouts.trees)
            error = each.std().item() * (1.5 / len(each)) ** 0.5  # ours, and that of the mean of two
            assert found[f"{name}_precision"] == pytest.approx(expected[name], abs=4 * error + 5e-4), name
        error = metrics.persistence_nll_nats(frames).std().item() * (1.5 / len(frames)) ** 0.5
        assert found["persistence_nll_nats"] == pytest.approx(expected["persistence_nll_nats"], abs=4 * error)
        assert found["chance_precision"] == 0.2


def test_exact_decoder(short: Layouts) -> None:
    """The rule of motion with the true tree, the nearest tree, another graph's tree and no edges."""
    frames, trees = short.frames[:1000], short.trees[:1000]
    guesses = (metrics.nearest_tree(frames), trees.roll(1, 0), torch.zeros_like(trees))
    # Positions in float32 are off by 1e-8, errors in units of 0.007.
    assert metrics.exact_decoder_nll_nats(frames, trees).max() < 1e-6
    for guess, expected in zip(guesses, (930, 4646, 2979), strict=True):
        nll = metrics.exact_decoder_nll_nats(frames, guess)
        assert nll.mean().item() == pytest.approx(expected, abs=5 * nll.std().item() / 1000**0.5)
