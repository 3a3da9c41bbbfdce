"""Gather what the stages measured, and draw it: `python -m papers.perturbed_optimizers.report --preset laptop`.

Writes `runs/<preset>/metrics.json`, and the headline, figures and tables in `reports/perturbed_optimizers/`. What a
preset did not measure is left out. The maps on tile art, which may not be passed on with this project, go into
`build/`. `python -m shared.report.publish perturbed_optimizers` fills in the text afterwards.
"""

import argparse
import itertools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from papers.perturbed_optimizers import (
    figures_images,
    figures_maps,
    figures_ranking,
    figures_terrain,
    figures_theory,
)
from papers.perturbed_optimizers.figures import Curves, Rows
from papers.perturbed_optimizers.figures_ranking import Table
from papers.perturbed_optimizers.tables import write_tables
from shared import errors
from shared.errors import UserError
from shared.measurements import read_metrics
from shared.paths import ROOT
from shared.report.records import Headline, headline, write_headline
from shared.report.tables import read_csv
from shared.results import Metrics, merge, put, read_rows, write_metrics
from shared.settings import read_yaml

#: What the paper reports, from summaries of it: the shares of 21 tables are quoted as 76 % and 90 %.
TABLES_OF_PAPER = 21
OF_PAPER = {
    "optimal_path_rate": "0.948 (unverified)",
    "cost_ratio": "1.00 (unverified)",
    "sets_better_than_least_squares": "16 of 21 (unverified)",
    "sets_within_5_percent": "19 of 21 (unverified)",
}
#: The counts of tables of which the smallest over the cross-validations is told too.
COUNTS = ("sets_better_than_least_squares", "sets_within_5_percent")
#: The forms of the Fenchel-Young loss on rankings.
FORMS = ("fy", "fy_gaussian", "fy_m1")


def gather(run: Path, arms: Sequence[str]) -> Metrics:
    """One tree of what the stages measured; all but `evaluate` may be absent."""
    stages = [run / name / "metrics.json" for name in ("theory", "rank", "noise_study", "classify")]
    trained = [run / "train" / arm / "metrics.json" for arm in arms]
    found = [path for path in (*stages, *trained) if path.is_file()]
    return merge([read_metrics(path) for path in (run / "evaluate" / "metrics.json", *found)])


def derive(metrics: Metrics) -> None:
    """Add what claims and text need and no stage gives.

    `fewest_<count>`: the smallest of a count of tables over the cross-validations. `noise_lead_low` and
    `noise_lead_high`: the lead over least squares at the largest number of training lists.
    """
    for name, arm in itertools.product((*COUNTS, *(f"{name}_kendall" for name in COUNTS)), FORMS):
        if arm in metrics.get(name, {}):
            put(metrics, f"fewest_{name}", arm, "exact", min(metrics[name][arm].values()))
    for word in ("low", "high"):
        matches = [re.fullmatch(rf"noise_lead_{word}_n(\d+)_over_least_squares", name) for name in metrics]
        sizes = [int(match[1]) for match in matches if match]
        if sizes:
            for seed, lead in metrics[f"noise_lead_{word}_n{max(sizes)}_over_least_squares"]["fy"].items():
                put(metrics, f"noise_lead_{word}", "fy", seed, lead)


def headlines(metrics: Metrics, preset: str) -> list[Headline]:
    """The few numbers that a reader asks for first.

    Raises:
        UserError: the arm `fenchel_young` was not evaluated.
    """
    maps: dict[str, Any] = {"preset": preset, "spread_over": "training seeds"}
    found = [
        headline(name, metrics, name, "fenchel_young", unit=unit, paper=OF_PAPER[name], **maps)
        for name, unit in (("optimal_path_rate", "share of test maps"), ("cost_ratio", "optimal / predicted"))
    ]
    tables = sum(name.startswith("spearman_") for name in metrics)
    told: dict[str, Any] = {
        "preset": preset,
        "unit": f"of {tables} tables",
        "spread_over": "repeated cross-validations",
    }
    for name in COUNTS:
        if "fy" in metrics.get(name, {}):
            paper = OF_PAPER[name] if tables == TABLES_OF_PAPER else None
            found.append(headline(name, metrics, name, "fy", paper=paper, **told))
    return found


def read_curves(folder: Path, arms: Sequence[str]) -> Curves:
    """The training records of terrain networks: arm -> seed -> rows."""
    return {arm: _by_seed(sorted((folder / arm).glob("curve-seed*.csv")), "curve-") for arm in arms}


def read_image_curves(folder: Path) -> Curves:
    """The training records of the classifiers: arm -> seed -> rows."""
    paths: dict[str, list[Path]] = {}
    for path in sorted(folder.glob("curve-*-seed*.csv")):
        paths.setdefault(path.stem.removeprefix("curve-").rpartition("-seed")[0], []).append(path)
    return {arm: _by_seed(found, f"curve-{arm}-") for arm, found in paths.items()}


def _by_seed(paths: Sequence[Path], prefix: str) -> dict[str, Rows]:
    return {path.stem.removeprefix(prefix): read_rows(path) for path in paths}


def read_sets(path: Path) -> list[Table]:
    """The rows of `sets.csv`, column -> cell; none without the file."""
    if not path.is_file():
        return []
    header, lines = read_csv(path)
    return [dict(zip(header, line, strict=True)) for line in lines]


def read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """The test maps that `evaluate` kept.

    Raises:
        UserError: the file is missing or damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {error}; run the evaluate stage") from None


def report(preset: str, root: Path = ROOT) -> None:
    """Write everything but the text, for one preset.

    Raises:
        UserError: the evaluate stage has not run at this preset.
    """
    paper, target = root / "papers" / "perturbed_optimizers", root / "reports" / "perturbed_optimizers"
    run, pictures = paper / "runs" / preset, paper / "pictures" / preset
    params = read_yaml(paper / "params.yaml")
    arms = params["arms_to_run"]
    metrics = gather(run, arms)
    derive(metrics)
    arrays = read_arrays(pictures / "terrain.npz")
    theory = {path.stem: read_rows(path) for path in sorted((run / "theory").glob("*.csv"))}
    sets, sweep = read_sets(run / "rank" / "sets.csv"), figures_terrain.read_sweep(params, preset)
    costs = {arm: run / "evaluate" / f"learnt-costs-{arm}.csv" for arm in arms}
    for stale in (*(target / "figures").glob("*.png"), *(target / "tables").glob("*.csv")):
        stale.unlink()  # of another preset, which may have measured more
    folder = target / "figures"
    figures_theory.draw(folder, theory)
    figures_ranking.draw(folder, metrics, sets)
    figures_images.draw(folder, metrics, read_image_curves(run / "classify"))
    learnt = {arm: read_rows(path) for arm, path in costs.items() if path.is_file()}
    figures_terrain.draw(folder, metrics, read_curves(run / "train", arms), learnt, sweep)
    figures_maps.draw(folder, root / "build" / "perturbed_optimizers", arrays)
    write_tables(target / "tables", metrics, sets, theory.get("variance", []), sweep)
    write_headline(target / "headline.json", headlines(metrics, preset))
    write_metrics(run / "metrics.json", metrics)


def main() -> None:
    """Parse and report."""
    parser = argparse.ArgumentParser(description="Gather and draw what the stages of a preset measured.")
    parser.add_argument("--preset", required=True, help="block of papers/perturbed_optimizers/params.yaml")
    report(parser.parse_args().preset)


if __name__ == "__main__":
    errors.run(main)
