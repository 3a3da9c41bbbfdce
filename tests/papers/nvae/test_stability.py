"""What NVAE's report says of stability: peaks after the warm-up, diverged runs, counts that are exact."""

import json
from pathlib import Path

from papers.nvae import figures, report
from shared.claims import check
from shared.report.style import new_figure
from shared.results import Metrics
from tests.papers.nvae.test_report import make


def test_stability_is_of_single_steps_after_the_warm_up_and_of_finished_runs() -> None:
    """One step of a row decides, not the row's mean; neither the warm-up nor a run that diverged counts."""
    calm = {"gradient_norm": 10.0, "largest_gradient_norm": 12.0, "largest_kl_nats": 20.0, "kl_nats_0": 20.0}
    rows: list[dict[str, float]] = [{**calm, "step": step} for step in range(50, 501, 50)]
    rows[1] |= {"largest_gradient_norm": 9e9, "largest_kl_nats": 9e9}
    rows[6] |= {"largest_gradient_norm": 50.0}
    rows[7] |= {"largest_kl_nats": 70.0}
    metrics: Metrics = {"diverged": {"base": {"seed0": 0.0, "seed1": 1.0}}}
    report.derive_stability(metrics, {"base": {"seed0": rows, "seed1": rows[:4], "seed2": []}, "main": {"seed0": rows}})
    assert metrics["late_gradient_peak_ratio"] == {"base": {"seed0": 5.0}, "main": {"seed0": 5.0}}
    assert metrics["late_largest_kl_nats"] == {"base": {"seed0": 70.0}, "main": {"seed0": 70.0}}


def test_an_arm_whose_runs_all_diverged_still_tells_its_groups(tmp_path: Path) -> None:
    run = make(tmp_path)
    report.report("laptop", tmp_path)
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["groups"]["stress_no_spectral"] == {"exact": 9}
    assert "stress_no_spectral" not in metrics["steps"]
    assert metrics["steps"]["stress"] == {"exact": 1000}


def test_bytes_kept_are_judged_as_an_exact_count(tmp_path: Path) -> None:
    make(tmp_path)
    report.report("laptop", tmp_path)
    (row,) = [row for row in check("nvae", "laptop", tmp_path) if row["id"] == "C8d-depthwise-memory"]
    assert (row["verdict"], row["spread_over"]) == ("reproduced", "nothing: exact")


def test_a_diverged_run_is_drawn_as_far_as_it_went() -> None:
    """It neither cuts the others short nor enters their mean."""
    _, (axes,) = new_figure()
    whole = [{"step": step, "y": 1.0} for step in (50, 100, 150)]
    figures.draw_curve(axes, {"a": whole, "b": whole, "c": [{"step": 50, "y": 9.0}], "d": []}, lambda row: row["y"], "")
    assert [list(line.get_ydata()) for line in axes.lines] == [[1.0, 1.0, 1.0], [9.0]]
