"""Figures of trainings: names of cells are read back, and each picture is drawn exactly when its numbers are there."""

from pathlib import Path

from papers.jem import figures_training, stability, tables
from shared.results import write_rows


def test_every_name_of_the_study_is_read_back() -> None:
    for cell in stability.plan([0]):
        read = figures_training.cell_of(cell.arm)
        assert read == (cell.rate, cell.chain_steps, cell.noise, cell.remedy)
    assert figures_training.cell_of("jem") is None
    assert figures_training.cell_of("rate1_eta1_noise0_prayer") is None


def test_every_remedy_has_words() -> None:
    assert set(figures_training.REMEDIES) == {"", *stability.REMEDIES}


def course(folder: Path, arm: str, generative: float) -> None:
    """Two seeds of a training of three rows."""
    for seed in range(2):
        record = [
            {"step": k, "log_density_data": generative * k, "log_density_samples": generative * (k - seed)}
            for k in range(3)
        ]
        looked = [{"step": k + 1.0, "nll_nats": 1.0 / (k + 1), "accuracy_percent": 70.0 + k} for k in range(3)]
        write_rows(folder / arm / f"record-seed{seed}.csv", record)
        write_rows(folder / arm / f"validation-seed{seed}.csv", looked)


def test_what_is_drawn(tmp_path: Path) -> None:
    drawn, train, study = tmp_path / "figures", tmp_path / "train", tmp_path / "stability"
    figures_training.draw(drawn, {}, train, study, tables.VIEWS)
    assert not drawn.exists()
    course(train, "jem", 1.0)
    course(train, "classifier", 0.0)
    figures_training.draw(drawn, {}, train, study, tables.VIEWS)
    assert {path.name for path in drawn.iterdir()} == {"training.png"}
    cells = stability.plan([0, 1])
    survived: dict[str, dict[str, float]] = {}
    for cell in cells:
        survived.setdefault(cell.arm, {})[f"seed{cell.seed}"] = 10.0 * cell.chain_steps
    rows = [
        {
            "rate": c.rate,
            "chain_steps": c.chain_steps,
            "noise": c.noise,
            "seed": c.seed,
            "step": k,
            "step_times_curvature": k,
        }
        for c in cells
        for k in range(3)
    ]
    write_rows(study / "curvature.csv", rows)
    timed = {"cost_ratio_eta5": {"seed0": 6.0}, "cost_ratio_eta10": {"seed0": 9.5}, "other": {"seed0": 1.0}}
    figures_training.draw(drawn, {"steps_survived": survived, "benchmark_ratio": timed}, train, study, tables.VIEWS)
    names = {"training.png", "divergences.png", "curvature.png", "cost.png"}
    assert {path.name for path in drawn.iterdir()} == names
