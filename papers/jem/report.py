"""Gather what the stages measured, and draw it: `python -m papers.jem.report --preset laptop`.

Writes `runs/<preset>/metrics.json`, and the headline, figures and tables in `reports/jem/`. What a preset did not
measure is left out. `python -m shared.report.publish jem` fills in the text afterwards.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from papers.jem import figures_images, figures_toys, figures_training
from papers.jem.tables import VIEWS, write_tables
from shared import errors
from shared.measurements import read_metrics
from shared.paths import ROOT
from shared.report.records import Headline, headline, write_headline
from shared.results import Metrics, merge, write_metrics
from shared.settings import read_yaml

STAGES = ("toys", "stability", "likelihood", "benchmark", "evaluate")
#: Name, metric and what the paper has, on other data and with another network.
HEADLINES = (
    ("accuracy", "accuracy_percent", "92.9 (CIFAR-10, all labels)"),
    ("ece", "ece20_percent", "4.87 (CIFAR-100)"),
    ("robust_accuracy_linf_0.05", "robust_linf_eps0_05_percent", None),
    ("robust_accuracy_linf_0.1", "robust_linf_eps0_1_percent", None),
)


def gather(run: Path, arms: Sequence[str]) -> Metrics:
    """One tree of what the stages measured; all but `evaluate` may be absent."""
    stages = [run / name / "metrics.json" for name in STAGES]
    trained = [run / "train" / arm / "metrics.json" for arm in arms]
    found = [path for path in (*stages, *trained) if path.is_file() or path.parent.name == "evaluate"]
    return merge([read_metrics(path) for path in found])


def headlines(metrics: Metrics, preset: str) -> list[Headline]:
    """The few numbers that a reader asks for first.

    Raises:
        UserError: the view `jem` was not evaluated.
    """
    return [
        headline(name, metrics, metric, "jem", preset=preset, unit="%", paper=paper, spread_over="training seeds")
        for name, metric, paper in HEADLINES
    ]


def report(preset: str, root: Path = ROOT) -> None:
    """Write everything but the text, for one preset.

    Raises:
        UserError: the evaluate stage has not run at this preset.
    """
    paper, target = root / "papers" / "jem", root / "reports" / "jem"
    run = paper / "runs" / preset
    arms = read_yaml(paper / "params.yaml")["arms_to_run"]
    metrics = gather(run, arms)
    for stale in (*(target / "figures").glob("*.png"), *(target / "tables").glob("*.csv")):
        stale.unlink()  # of another preset, which may have measured more
    tables = figures_images.read_tables(run / "evaluate")
    tables["flow"] = figures_images.read_tables(run).get("likelihood", {})
    pictures = figures_images.read_pictures(paper / "pictures" / preset)
    pictures["flow"] = figures_images.read_pictures(run / "likelihood").get("samples", {})
    figures_images.draw(target / "figures", metrics, tables, pictures, VIEWS)
    figures_training.draw(target / "figures", metrics, run / "train", run / "stability", VIEWS)
    figures_toys.draw(target / "figures", metrics, run / "toys")
    write_tables(target / "tables", metrics)
    write_headline(target / "headline.json", headlines(metrics, preset))
    write_metrics(run / "metrics.json", metrics)


def main() -> None:
    """Parse and report."""
    parser = argparse.ArgumentParser(description="Gather and draw what the stages of a preset measured.")
    parser.add_argument("--preset", required=True, help="block of papers/jem/params.yaml")
    report(parser.parse_args().preset)


if __name__ == "__main__":
    errors.run(main)
