"""The report of NVAE on made-up runs: complete, cut down to three arms, on RGB images, and with diverged seeds."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from papers.nvae import report
from shared.claims import check, of_paper
from shared.errors import UserError
from shared.expressions import operands, parse
from shared.paths import ROOT, paper
from shared.provenance import code_sha256
from shared.report import publish, tables
from shared.results import Metrics, put, write_metrics, write_rows
from shared.settings import read_yaml
from tests.shared import fabricated

SEEDS = 4
GROUPS = 6
TEMPERATURES = (0.6, 0.8, 0.9, 1.0)
PARAMS = read_yaml(paper("nvae") / "params.yaml")
ARMS = tuple(PARAMS["arms"])
SMOKE_ARMS = ("base", "absolute", "no_spectral")
COPIED = ("claims.yaml", "report.md.j2", "slides.md.j2", "README.md", "params.yaml", "train.py")


def curve(seed: int, groups: int = GROUPS, steps: int = 5000, level: float = 80.0) -> list[dict[str, float]]:
    """A training record that looks like one: the bound falls, the KL rises, the last group stays idle."""
    rng, rows = np.random.default_rng(seed), []
    for step in range(50, steps + 1, 50):
        fall = math.exp(-step / 300)
        kl = [
            (20.0 / (i + 1) * (1 - fall) + 200 * fall * (i < 2)) * (0.001 if i == groups - 1 else 1)
            for i in range(groups)
        ]
        reconstruction = level - 25 + 400 * fall + rng.normal(0, 0.5)
        row = {"step": step, "bound_nats": reconstruction + sum(kl), "reconstruction_nats": reconstruction, "loss": 1.0}
        row |= {"gradient_norm": 20 + 500 * fall, "kl_nats": sum(kl)}
        row |= {"largest_gradient_norm": 30 + 900 * fall, "largest_kl_nats": sum(kl) + 5}
        rows.append({**row, **{f"kl_nats_{i}": value for i, value in enumerate(kl)}})
    return rows


def evaluated(binary: bool, seed: str = "seed0") -> Metrics:
    """What `evaluate` measures."""
    metrics: Metrics = {}
    nll, dimensions = (81.2, 784) if binary else (7400.0, 3072)
    for name, value in {"test_nll_nats": nll, "test_bound_nats": nll + 3, "nll_nats_excess_of_bfloat16": 0.01}.items():
        put(metrics, name, "main", seed, value)
        put(metrics, f"{name}_standard_error", "main", seed, 0.2)
    put(metrics, "test_nll_bits_per_dim", "main", seed, nll / math.log(2) / dimensions)
    put(metrics, "bound_nats_running_statistics", "main", seed, 84.0)
    put(metrics, "bound_nats_batch_statistics", "main", seed, 83.9)
    put(metrics, "bound_nats_excess_of_running_statistics", "main", seed, 0.1)
    put(metrics, "bound_nats_excess_of_running_statistics_standard_error", "main", seed, 0.02)
    put(metrics, "side_path_gradient", "main", seed, 0.0)
    put(metrics, "decoder_passes_per_sample", "main", "exact", 1)
    for i in range(GROUPS):
        put(metrics, "test_kl_nats", f"group{i + 1}", seed, 9.0 / (i + 1) if i + 1 < GROUPS else 0.01)
    for k in range(GROUPS + 1):
        put(metrics, "reconstruction_nats_from_prior", f"groups{k}", seed, 55 + 30.0 * k)
    for repeat in range(3) if binary else ():
        put(metrics, "feature_distance", "validation_images", f"repeat{repeat}", 0.4 + 0.01 * repeat)
        for t in TEMPERATURES:
            put(metrics, "feature_distance", f"running_{t}", f"repeat{repeat}", 9 - 4 * t + 0.1 * repeat)
            put(metrics, "feature_distance", f"readjusted_{t}", f"repeat{repeat}", 7 - 3 * t + 0.1 * repeat)
    if binary:
        put(metrics, "classifier_accuracy", "test", "exact", 0.98)
    return metrics


def pictures(binary: bool) -> dict[str, Any]:
    """The arrays that `evaluate` writes: filled squares; RGB ones in [-1, 1]."""
    rng, shape = np.random.default_rng(0), ((1, 28, 28) if binary else (3, 32, 32))
    names = {f"samples_{kind}_{t}": (64,) for kind in ("running", "readjusted") for t in TEMPERATURES}
    names |= {"originals": (8,), "reconstructions": (8,), "interpolations": (54,), "from_prior": (GROUPS + 2, 8)}
    arrays = {name: rng.random((*count, *shape)).astype(np.float16) for name, count in names.items()}
    return arrays if binary else {name: array * 2 - 1 for name, array in arrays.items()}


def memory() -> Metrics:
    """What `memory` measures."""
    metrics: Metrics = {}
    sizes = {"naive": 3.0, "bn_silu": 2.0, "fused": 1.4, "checkpoint": 0.8, "fused_float32": 2.5}
    for i, (name, size) in enumerate(sizes.items()):
        put(metrics, "saved_bytes", name, "exact", int(1e8 * size))
        put(metrics, "largest_gradient_difference", name, "exact", 1e-6 * i)
        for repeat in range(3):
            put(metrics, "peak_bytes", name, f"repeat{repeat}", int(1.5e8 * size + 1e5 * repeat))
        for k in range(5):
            put(metrics, "step_ms", name, f"round{k}", 100 + 5 * i + k)
            put(metrics, "step_time_ratio", name, f"round{k}", 1 + 0.05 * (i - 1) + 0.001 * k)
    put(metrics, "layer_saved_bytes", "bn_silu", "exact", 2_000_000)
    put(metrics, "layer_saved_bytes", "fused", "exact", 1_000_000)
    return metrics


def ablated(folder: Path, arm: str, shift: float, diverged: int = 0) -> None:
    """One arm's folder; the first `diverged` seeds have a short curve, and no numbers but their divergence."""
    metrics: Metrics = {}
    groups = 9 if arm.startswith(("deep", "stress")) else 1 if arm == "one_group" else 3
    for seed in range(SEEDS):
        key, noise, rows = f"seed{seed}", 0.3 * seed, curve(seed, groups, 1000, 40 + shift)
        put(metrics, "diverged", arm, key, float(seed < diverged))
        if seed < diverged:
            put(metrics, "diverged_step", arm, key, 117.0)
            rows = [*rows[:2], {**rows[2], "step": 117}]
        else:
            numbers = {
                "nll_nats": 40 + shift,
                "bound_nats": 42 + shift,
                "test_kl_nats": 15.0,
                "train_kl_nats": 15 + shift,
            }
            numbers |= {"train_bound_nats": 41 + shift, "active_groups": 3.0, "largest_kl_nats": 90.0}
            for name, value in {**numbers, "largest_gradient_norm": 100 + groups}.items():
                put(metrics, name, arm, key, value + noise * (1 + 0.1 * shift))
        write_rows(folder / f"curve-seed{seed}.csv", rows)
    put(metrics, "saved_bytes", arm, "exact", 1e6 * (1 + 2 * ("separable" in arm) + (arm == "both_separable")))
    put(metrics, "parameters", arm, "exact", 1e4 * groups)
    write_metrics(folder / "metrics.json", metrics)


def make(root: Path, preset: str = "laptop", arms: tuple[str, ...] = ARMS, binary: bool = True) -> Path:
    """A checkout with one run of NVAE in it; returns the run's folder."""
    folder = root / "papers" / "nvae"
    folder.mkdir(parents=True, exist_ok=True)
    for name in COPIED:
        shutil.copy(paper("nvae") / name, folder / name)
    params = (folder / "params.yaml").read_text()
    (folder / "params.yaml").write_text(params.replace("preset: laptop", f"preset: {preset}", 1))
    (root / "README.md").write_text((ROOT / "README.md").read_text())
    run = folder / "runs" / preset
    rows = curve(0)
    write_rows(run / "train" / "seed0" / "curve.csv", rows)
    (run / "train/seed0/metrics.json").write_text(json.dumps({"parameters": 551_000, "steps": 5000, **rows[-1]}))
    write_metrics(run / "evaluate" / "seed0" / "metrics.json", evaluated(binary))
    (folder / "pictures" / preset).mkdir(parents=True)
    np.savez_compressed(folder / "pictures" / preset / "seed0.npz", **pictures(binary))
    if arms:
        write_metrics(run / "memory" / "metrics.json", memory())
    for i, arm in enumerate(arms):
        diverged = {"stress": 1, "stress_no_spectral": SEEDS}.get(arm, 0)
        ablated(run / "ablate" / arm, arm, ((i * 7) % 5 - 2) / 2 if i else 0.0, diverged)
    digest = code_sha256(paper("nvae") / "train.py")
    record = fabricated.provenance("train-seed0", "papers/nvae/train.py", digest, 700.0, 0, preset)
    (run / "provenance").mkdir()
    (run / "provenance" / "train-seed0.json").write_text(json.dumps(record))
    return run


def published(root: Path, preset: str) -> tuple[str, str]:
    """The report and the slides that the templates make of a run."""
    report.report(preset, root)
    publish.publish(["nvae"], root=root)
    folder = root / "reports" / "nvae"
    return (folder / "README.md").read_text(), (folder / "slides.md").read_text()


def test_a_complete_run_fills_report_and_slides(tmp_path: Path) -> None:
    make(tmp_path)
    text, slides = published(tmp_path, "laptop")
    assert "81.2" in text
    assert "81.2" in slides
    for figure in (tmp_path / "reports/nvae/figures").glob("*.png"):
        assert f"figures/{figure.name}" in text + slides or figure.name == "gallery.png", (
            f"{figure.name} is shown nowhere"
        )
    assert {row["verdict"] for row in check("nvae", "laptop", tmp_path)} >= {"reproduced", "not reproduced"}
    assert publish.stale(["nvae"], root=tmp_path) == []


@pytest.mark.parametrize("arms", [SMOKE_ARMS, ()], ids=["three arms", "no arms"])
def test_what_was_not_measured_is_left_out(tmp_path: Path, arms: tuple[str, ...]) -> None:
    make(tmp_path, "smoke", arms)
    text, _ = published(tmp_path, "smoke")
    assert "not measured" in text


def test_a_peak_too_small_to_see_has_no_ratio(tmp_path: Path) -> None:
    """The tiny smoke network may not raise a process's peak at all; the report must not divide by that."""
    run = make(tmp_path, "smoke", SMOKE_ARMS)
    measured = json.loads((run / "memory" / "metrics.json").read_text())
    measured["peak_bytes"] = {name: dict.fromkeys(values, 0) for name, values in measured["peak_bytes"].items()}
    (run / "memory" / "metrics.json").write_text(json.dumps(measured))
    text, _ = published(tmp_path, "smoke")
    assert "the peak of a step is not " in text


def test_rgb_images(tmp_path: Path) -> None:
    """No binary likelihood, no feature distance; pictures are brought from [-1, 1] to [0, 1]."""
    run = make(tmp_path, "gpu_cifar10", (), binary=False)
    published(tmp_path, "gpu_cifar10")
    metrics = json.loads((run / "metrics.json").read_text())
    assert "mnist_nll_nats" not in metrics
    nats, bits = metrics["test_nll_nats"]["main"]["seed0"], metrics["cifar10_bits_per_dim"]["main"]["seed0"]
    assert bits == pytest.approx(nats / (3072 * math.log(2)))
    assert metrics["cifar10_bits_per_dim_standard_error"]["main"]["seed0"] == pytest.approx(0.2 * bits / nats)
    (head, *_) = json.loads((tmp_path / "reports/nvae/headline.json").read_text())
    assert (head["name"], head["unit"], head["paper"]) == ("bits_per_dim", "bits/dim", 2.91)
    array = report.read_pictures(tmp_path / "papers" / "nvae" / "pictures" / "gpu_cifar10" / "seed0.npz")[
        "samples_running_0.6"
    ]
    assert array.min() >= 0
    assert 0.4 < array.mean() < 0.6


def test_another_presets_figures_do_not_stay(tmp_path: Path) -> None:
    make(tmp_path)
    report.report("laptop", tmp_path)
    assert (tmp_path / "reports/nvae/figures/feature_distance.png").is_file()
    make(tmp_path, "gpu_cifar10", (), binary=False)
    report.report("gpu_cifar10", tmp_path)
    assert not (tmp_path / "reports/nvae/figures/feature_distance.png").exists()


def test_comparisons_are_paired_by_seed() -> None:
    """The difference is over common seeds alone; a diverged seed takes its partner out."""
    metrics = {
        "nll_nats": {"base": {"seed0": 40.0, "seed1": 50.0, "seed2": 60.0}, "absolute": {"seed1": 51.0, "seed2": 61.5}},
        "diverged": {"absolute": {"seed0": 1.0, "seed1": 0.0, "seed2": 0.0}},
    }
    (row,) = report.comparisons(metrics, ["base", "absolute"])
    assert (row["difference"], row["n"], row["diverged"], row["runs"]) == (1.25, 2, 1, 3)
    assert row["low"] < 1.0 < 1.5 < row["high"]


def test_every_arm_has_its_place_in_the_comparisons() -> None:
    """Those named by no question come last, against base, which alone has no row."""
    rows = report.comparisons({}, [*ARMS, "unheard_of"])
    assert {row["arm"] for row in rows} == {*ARMS, "unheard_of"} - {"base"}
    assert rows[-1]["arm"] == "unheard_of"
    assert sum(row["first"] for row in rows) == len({row["question"] for row in rows})


def test_a_missing_evaluation_is_told_in_one_line(tmp_path: Path) -> None:
    make(tmp_path)
    (tmp_path / "papers" / "nvae" / "pictures" / "laptop" / "seed0.npz").unlink()
    with pytest.raises(UserError, match="evaluate"):
        report.report("laptop", tmp_path)


def test_claims_name_what_the_stages_measure() -> None:
    """A misspelt metric or arm would leave a claim "not attempted" for ever, and nobody would notice."""
    stages = "".join(
        (paper("nvae") / f"{stage}.py").read_text() for stage in ("evaluate", "ablate", "memory", "report")
    )
    others = {arm for metrics in (evaluated(True), memory()) for arms in metrics.values() for arm in arms}
    for claim in of_paper("nvae"):
        for name in operands(parse(claim.compare)) if claim.compare else ():
            assert f'"{name.metric}"' in stages, f"{claim.id}: nothing measures {name.metric}"
            assert name.arm in (others if name.arm not in ARMS else ARMS), f"{claim.id}: no arm {name.arm}"
            assert name.metric != "nll_nats" or name.arm in ARMS, f"{claim.id}: no arm {name.arm} in params.yaml"


def test_a_complete_run_attempts_every_claim_but_those_on_the_papers_own_models(tmp_path: Path) -> None:
    make(tmp_path)
    report.report("laptop", tmp_path)
    left = [row["id"] for row in check("nvae", "laptop", tmp_path) if row["verdict"] == "not attempted"]
    assert left == ["C2a-cifar10-value", "C2b-mnist-value"]


def test_arms_without_the_memory_table(tmp_path: Path) -> None:
    """The arms measure their own bytes; the memory table is about other variants."""
    run = make(tmp_path, "smoke", SMOKE_ARMS)
    (run / "memory" / "metrics.json").unlink()
    text, _ = published(tmp_path, "smoke")
    assert "The memory table was not measured" in text


def test_the_table_of_rivals_marks_what_was_not_read_in_the_paper(tmp_path: Path) -> None:
    make(tmp_path)
    report.report("laptop", tmp_path)
    _, rows = tables.read_csv(tmp_path / "reports/nvae/tables/likelihood.csv")
    quoted = [str(cell) for row in rows[:-1] for cell in row[1:] if cell is not None]
    assert [cell for cell in quoted if "unverified" not in cell] == ["2.91"]
