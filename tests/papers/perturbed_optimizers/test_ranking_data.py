"""The tables, their folds, and rank correlations against scipy."""

import shutil

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.preprocessing import StandardScaler

from papers.perturbed_optimizers import ranking_data
from papers.perturbed_optimizers.ranking_data import SIZES, folds, kendall_tau, load, names, spearman_rho, standardised
from shared.errors import UserError
from shared.paths import DATA, ROOT

SAMPLES = ROOT / "tests" / "data"


def test_the_sample_is_loaded_only_when_asked_for():
    table = load("iris", folder=SAMPLES, allow_sample=True)
    assert table.profile == "sample"
    assert table.features.shape == (50, 4)
    assert table.ranks.shape == (50, 3)
    with pytest.raises(UserError, match="sample"):
        load("iris", folder=SAMPLES)


def test_a_damaged_table_is_refused(tmp_path):
    shutil.copytree(SAMPLES / "label_ranking", tmp_path / "label_ranking")
    path = tmp_path / "label_ranking" / "wine.csv"
    path.write_text(path.read_text().replace("1,2,3", "1,2,2", 1))
    with pytest.raises(UserError, match="damaged"):
        load("wine", folder=tmp_path, allow_sample=True)


def test_positions_that_are_no_permutation_are_refused(tmp_path, monkeypatch):
    (tmp_path / "label_ranking").mkdir()
    (tmp_path / "label_ranking" / "iris.csv").write_text("A1,L1,L2\n0.5,1,2\n0.5,2,2\n")
    monkeypatch.setattr(ranking_data, "check", lambda *_, **__: "full")
    with pytest.raises(UserError, match=r"no permutation of 1\.\.2"):
        load("iris", folder=tmp_path)


def test_ranks_are_large_for_the_label_in_the_first_position():
    """The first line of iris: positions 1, 2, 3."""
    table = load("iris", folder=SAMPLES, allow_sample=True)
    header, line = (SAMPLES / "label_ranking" / "iris.csv").read_text().splitlines()[:2]
    positions = [int(cell) for cell, name in zip(line.split(","), header.split(",")) if name.startswith("L")]
    assert (table.ranks[0] + torch.tensor(positions)).tolist() == [4, 4, 4]
    assert table.ranks[0].argmax() == positions.index(1)


@pytest.mark.data
@pytest.mark.parametrize("name", SIZES)
def test_the_real_tables_have_their_published_sizes(name):
    table = load(name, folder=DATA)
    assert (*table.features.shape, table.ranks.shape[1]) == SIZES[name]
    assert table.profile == "full"


def test_names():
    assert len(names("all")) == 21
    assert names(("wine", "iris")) == ["wine", "iris"]
    with pytest.raises(UserError, match="rice"):
        names(["iris", "rice"])
    with pytest.raises(UserError):
        names([])


@pytest.mark.parametrize(("n", "count"), [(7, 7), (150, 10), (841, 10), (999, 10), (1000, 5), (2465, 5)])
def test_folds_partition_the_rows_and_never_test_on_training_rows(n, count):
    parts = folds(n, seed=3)
    assert len(parts) == count
    assert sorted(torch.cat([test for _, test in parts]).tolist()) == list(range(n))
    assert len({len(train) for train, _ in parts}) == 1
    for train, test in parts:
        assert not set(train.tolist()) & set(test.tolist())
        assert len(set(train.tolist())) == len(train)
        assert 0 <= n - len(train) - len(test) <= 1


def test_folds_are_a_function_of_the_seed():
    assert all(torch.equal(a[1], b[1]) for a, b in zip(folds(150, 0), folds(150, 0)))
    assert not all(torch.equal(a[1], b[1]) for a, b in zip(folds(150, 0), folds(150, 1)))


def test_standardised_as_sklearn_from_training_rows_only():
    features, rows = torch.randn(40, 3) * 5 + 2, torch.arange(30)
    features[:, 2] = 7
    scaled = standardised(features, rows)
    expected = StandardScaler().fit(features[:30].numpy()).transform(features.numpy())
    np.testing.assert_allclose(scaled[:, :3].numpy(), expected, atol=1e-5)
    assert (scaled[:, 3] == 1).all()
    # Test rows have no say.
    features[30:] = 1e6
    torch.testing.assert_close(standardised(features, rows)[:30], scaled[:30])


@pytest.mark.parametrize("n", [2, 3, 7, 16])
def test_correlations_as_scipy(n):
    first = torch.rand(25, n).argsort(-1).float() + 1
    second = torch.rand(25, n).argsort(-1).float() + 1
    for found, expected in ((kendall_tau, stats.kendalltau), (spearman_rho, stats.spearmanr)):
        values = [expected(a.numpy(), b.numpy()).statistic for a, b in zip(first, second)]
        np.testing.assert_allclose(found(first, second).numpy(), values, atol=1e-6)


def test_correlations_of_a_known_pair():
    first, second = torch.tensor([1.0, 2, 3, 4, 5]), torch.tensor([2.0, 1, 3, 5, 4])
    assert kendall_tau(first, second).item() == pytest.approx(0.6)
    assert spearman_rho(first, second).item() == pytest.approx(0.8)
    assert kendall_tau(first, 6 - first).item() == spearman_rho(first, 6 - first).item() == -1


def test_correlations_broadcast():
    many = torch.rand(2, 3, 4, 5).argsort(-1).float() + 1
    one = many[:, :1]
    assert kendall_tau(many, one).shape == (2, 3, 4)
    assert (kendall_tau(many, one)[:, 0] == 1).all()
    assert (spearman_rho(many, one)[:, 0] == 1).all()
