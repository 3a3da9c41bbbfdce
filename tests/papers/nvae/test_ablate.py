"""One arm of the comparisons: its settings, what it leaves behind, and what a diverged run leaves behind."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from papers.nvae import ablate
from papers.nvae.experiment import Trainer
from papers.nvae.model import NVAE
from papers.nvae.settings import PARAMS, Settings
from shared.results import read_rows
from shared.settings import read_yaml
from shared.training.checkpoint import StateFolder
from shared.training.loop import Divergence, Record, fit
from tests.papers.nvae import tiny

ARMS = tuple(read_yaml(PARAMS)["arms"])
PRESETS = ("smoke", "laptop", "gpu", "gpu_cifar10", "paper", "paper_cifar10")


def _train(trainer: Trainer, folder: StateFolder, label: str) -> Record:
    """As `experiment.train`, with rows of two steps."""
    return fit(
        trainer.step, steps=trainer.steps, seed=trainer.seed, state=trainer.state(), folder=folder, label=label,
        guard=("bound_nats", 1e5), record_every=2, largest=("gradient_norm", "kl_nats"),
    )  # fmt: skip


@pytest.fixture(autouse=True)
def _short_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ablate, "train", _train)
    monkeypatch.setattr(ablate, "SAMPLES", 2)
    monkeypatch.setattr(ablate, "TEST_IMAGES", 16)


def outcome(root: Path, trainer: Trainer) -> tuple[dict[str, float], Record]:
    with StateFolder("run", "key", root) as folder:
        return ablate.outcome(trainer, tiny.images(trainer.settings), folder, "an arm")


def _spoilt(trainer: Trainer, at: int) -> Trainer:
    terms = trainer.terms

    def damaged(k: int) -> Any:
        good = terms(k)
        return replace(good, bound_nats=good.bound_nats * math.nan) if k == at else good

    trainer.terms = damaged  # type: ignore[method-assign]
    return trainer


# --- settings ---


@pytest.mark.parametrize("preset", PRESETS)
def test_every_arm_is_of_pooled_mnist_at_every_preset(preset: str) -> None:
    chosen = [ablate.arm_settings(preset, arm) for arm in ARMS]
    assert {(each.data, each.image_side) for each in chosen} == {("mnist", 16)}
    steps = read_yaml(PARAMS)[preset]["steps"]
    assert all(each.steps <= steps for each in chosen)


def test_an_arm_may_ask_for_fewer_steps_than_the_others() -> None:
    assert ablate.arm_settings("laptop", "stress").steps < ablate.arm_settings("laptop", "base").steps
    assert ablate.arm_settings("smoke", "stress").steps == read_yaml(PARAMS)["smoke"]["steps"]


def _network(arm: str) -> tuple[Settings, NVAE]:
    chosen = ablate.arm_settings("laptop", arm)
    return chosen, NVAE(chosen, 1, 16)


def _latent_variables(network: NVAE) -> int:
    with torch.no_grad():
        inference = network.eval()(tiny.padded(1, 1, 16))
    return sum(z.numel() for z in inference.latents)


def test_one_group_has_the_size_of_base() -> None:
    (_, one), (_, base) = _network("one_group"), _network("base")
    sizes = [sum(p.numel() for p in network.parameters()) for network in (one, base)]
    assert len(one.groups) == 1
    assert 0.9 <= sizes[0] / sizes[1] <= 1.1
    assert _latent_variables(one) == _latent_variables(base)
    assert one.start.shape[2:] == base.start.shape[2:]


def test_separable_arms_have_the_papers_expansion() -> None:
    for arm in ("decoder_separable", "encoder_separable", "both_separable"):
        assert ablate.arm_settings("laptop", arm).expansion == 6


def test_stress_arms_differ_in_their_remedy_alone() -> None:
    stress, *others = (
        ablate.arm_settings("laptop", arm) for arm in ("stress", "stress_no_spectral", "stress_absolute")
    )
    changed = [
        {name for name in Settings.__struct_fields__ if getattr(stress, name) != getattr(each, name)} for each in others
    ]
    assert changed == [{"spectral_weight"}, {"residual_posterior"}]


# --- what a run leaves behind ---


def test_a_finished_run(tmp_path: Path) -> None:
    """The largest values are those of single steps, and nothing warns on the way."""
    trainer = tiny.trainer(steps=5)
    norms, step = [], trainer.step

    def watched(k: int) -> dict[str, torch.Tensor]:
        row = step(k)
        norms.append((float(row["gradient_norm"]), sum(float(row[f"kl_nats_{i}"]) for i in range(3))))
        return row

    trainer.step = watched  # type: ignore[method-assign]
    numbers, record = outcome(tmp_path, trainer)
    assert numbers["diverged"] == 0
    assert numbers["largest_gradient_norm"] == pytest.approx(max(norm for norm, _ in norms), rel=1e-6)
    assert numbers["largest_kl_nats"] == pytest.approx(max(kl for _, kl in norms), rel=1e-5)
    assert numbers["parameters"] == sum(p.numel() for p in trainer.model.parameters())
    assert numbers["spectral_norm_sum"] > 0
    assert [row["step"] for row in record.rows] == [2, 4, 5]


def test_a_diverged_run_keeps_its_curve(tmp_path: Path) -> None:
    trainer = _spoilt(tiny.trainer(steps=6), at=3)
    numbers, record = outcome(tmp_path, trainer)
    assert set(numbers) == {"diverged", "diverged_step", "parameters"}
    assert (numbers["diverged"], numbers["diverged_step"]) == (1, 3)
    assert [row["step"] for row in record.rows] == [2, 3]
    assert all(math.isfinite(value) for row in record.rows for value in row.values())


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_measurement_that_is_not_finite_is_a_divergence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bad: float
) -> None:
    likelihood = ablate.likelihood

    def damaged(*given: Any) -> Any:
        good = likelihood(*given)
        return replace(good, nll_nats=good.nll_nats * bad)

    monkeypatch.setattr(ablate, "likelihood", damaged)
    numbers, record = outcome(tmp_path, tiny.trainer(steps=4))
    assert (numbers["diverged"], numbers["diverged_step"]) == (1, 4)
    assert "nll_nats" not in numbers
    assert len(record.rows) == 2


def test_what_is_written(tmp_path: Path) -> None:
    """Diverged curves too; a count that the seeds share is exact, a measurement that they happen to share is not."""
    row = {"step": 2, "bound_nats": 3.0}
    numbers = {"nll_nats": 5.0, "saved_bytes": 7.0, "parameters": 11.0, "diverged": 0.0}
    results = [{"numbers": numbers, "rows": [row, {**row, "step": 4}]}] * 2
    results += [{"numbers": {"parameters": 11.0, "diverged": 1.0, "diverged_step": 2.0}, "rows": [row]}]
    ablate.write(tmp_path, "base", [0, 1, 5], results)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["saved_bytes"]["base"] == {"exact": 7.0}
    assert metrics["parameters"]["base"] == {"exact": 11.0}
    assert metrics["nll_nats"]["base"] == {"seed0": 5.0, "seed1": 5.0}
    assert metrics["diverged"]["base"] == {"seed0": 0.0, "seed1": 0.0, "seed5": 1.0}
    assert [len(read_rows(tmp_path / f"curve-seed{seed}.csv")) for seed in (0, 1, 5)] == [2, 2, 1]


def test_counts_that_differ_stay_with_their_seeds(tmp_path: Path) -> None:
    results = [{"numbers": {"saved_bytes": value}, "rows": []} for value in (7.0, 8.0)]
    ablate.write(tmp_path, "base", [0, 1], results)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["saved_bytes"]["base"] == {"seed0": 7.0, "seed1": 8.0}


def test_divergence_before_the_first_row_leaves_no_rows(tmp_path: Path) -> None:
    numbers, record = outcome(tmp_path, _spoilt(tiny.trainer(steps=4), at=0))
    assert (numbers["diverged_step"], record.rows) == (0, [])
    with pytest.raises(Divergence), StateFolder("other", "key", tmp_path) as folder:
        _train(_spoilt(tiny.trainer(steps=4), at=0), folder, "the same, seen from outside")
