"""Gather what the stages measured, and draw it: `python -m papers.sst.report --preset laptop`.

Writes `runs/<preset>/metrics.json`, and the headline, figures and tables in `reports/sst/`. What a preset did not
measure is left out. Figures with words of the movie reviews, which may not be passed on with this project, go into
`build/`. `python -m shared.report.publish sst` fills in the text afterwards.
"""

import argparse
import gzip
import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from papers.sst import figures_explain, figures_layout, figures_listops, figures_theory
from papers.sst.figures_layout import Curves, Rows
from papers.sst.tables import kind_of_start, write_tables
from shared import errors
from shared.errors import UserError
from shared.files import read_json
from shared.measurements import read_metrics
from shared.paths import ROOT
from shared.report.records import Headline, headline, write_headline
from shared.results import Metrics, merge, put, read_rows, write_metrics
from shared.settings import read_yaml
from shared.statistics import mean

#: What the paper reports for the spanning tree, second-hand. ELBO in nats a vertex, the scale of the released code.
OF_PAPER = {
    "t10_edge_precision": "91 (unverified)",
    "t10_elbo_nats": "-1080 (unverified)",
    "t20_edge_precision": "99 (unverified)",
    "t20_elbo_nats": "-1280 (unverified)",
}
STAGES = ("theory", "gradients", "parse", "explain", "evaluate")


def gather(run: Path, arms: Sequence[str]) -> Metrics:
    """One tree of what the stages measured; all but `evaluate` may be absent."""
    stages = [run / name / "metrics.json" for name in STAGES]
    trained = [run / "train" / arm / "metrics.json" for arm in arms]
    found = [path for path in (*stages, *trained) if path.is_file() or path.parent.name == "evaluate"]
    return merge([read_metrics(path) for path in found])


def derive(metrics: Metrics, starts: Mapping[str, Rows]) -> None:
    """Add what claims and text need and no stage gives.

    `t10_elbo_deviation_nats`: how far the bound of a seed is from the mean of its arm. `t10_starts_found` and
    `t10_starts_complement`: of the short starts of a seed, the percentages that have found most edges, and that have
    fewer right than chance.
    """
    for horizon in figures_layout.HORIZONS:
        for arm, values in metrics.get(f"t{horizon}_elbo_nats", {}).items():
            centre = mean(list(values.values()))
            for seed, value in values.items():
                put(metrics, f"t{horizon}_elbo_deviation_nats", arm, seed, abs(value - centre))
    for arm, rows in starts.items():
        for horizon, seed in sorted({(row["horizon"], row["seed"]) for row in rows}):
            kinds = [kind_of_start(row) for row in rows if (row["horizon"], row["seed"]) == (horizon, seed)]
            for kind in ("found", "complement"):
                put(metrics, f"t{horizon:g}_starts_{kind}", arm, f"seed{seed:g}", 100 * kinds.count(kind) / len(kinds))


def headlines(metrics: Metrics, preset: str) -> list[Headline]:
    """The few numbers that a reader asks for first.

    Raises:
        UserError: the arm `tree` was not evaluated.
    """
    return [
        headline(
            name, metrics, name, "tree", preset=preset, unit="%" if name.endswith("precision") else "nats a vertex",
            paper=paper, spread_over="training seeds",
        )
        for name, paper in OF_PAPER.items()
    ]  # fmt: skip


def read_curves(folder: Path, arms: Sequence[str]) -> Curves:
    """The validation curves of the graph-layout models: arm -> horizon -> seed -> rows."""
    curves: dict[str, dict[int, dict[str, Rows]]] = {}
    for arm in arms:
        for path in sorted((folder / arm).glob("curve-t*-seed*.csv")):
            _, horizon, seed = path.stem.split("-")
            curves.setdefault(arm, {}).setdefault(int(horizon[1:]), {})[seed] = read_rows(path)
    return curves


def read_starts(folder: Path, arms: Sequence[str]) -> dict[str, list[dict[str, float]]]:
    """The short starts: arm -> rows."""
    paths = {arm: folder / arm / "starts.csv" for arm in arms}
    return {arm: read_rows(path) for arm, path in paths.items() if path.is_file()}


def read_series(run: Path) -> dict[str, Rows]:
    """The tables that `theory` and `gradients` left for figures: name -> rows."""
    series: dict[str, Rows] = {path.stem: read_rows(path) for path in sorted((run / "theory").glob("*.csv"))}
    training = run / "gradients" / "training.csv"
    return series | ({"training": read_rows(training)} if training.is_file() else {})


def read_optional(path: Path) -> Any:
    """A JSON file, or an empty object where the stage did not run."""
    return read_json(path) if path.is_file() else {}


def read_movies(path: Path) -> Any:
    """The movie reviews that `explain` kept, or an empty object where it did not run.

    Raises:
        UserError: the file is damaged.
    """
    try:
        return json.loads(gzip.decompress(path.read_bytes())) if path.is_file() else {}
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise UserError(f"cannot read {path}: {error}; run the explain stage") from None


def report(preset: str, root: Path = ROOT) -> None:
    """Write everything but the text, for one preset.

    Raises:
        UserError: the evaluate stage has not run at this preset.
    """
    paper, target = root / "papers" / "sst", root / "reports" / "sst"
    run = paper / "runs" / preset
    arms = read_yaml(paper / "params.yaml")["arms_to_run"]
    metrics = gather(run, arms)
    starts = read_starts(run / "train", arms)
    derive(metrics, starts)
    for stale in (*(target / "figures").glob("*.png"), *(target / "tables").glob("*.csv")):
        stale.unlink()  # of another preset, which may have measured more
    folder = target / "figures"
    figures_layout.draw(
        folder, metrics, read_curves(run / "train", arms), starts, read_optional(run / "evaluate" / "examples.json")
    )
    figures_listops.draw(
        folder, metrics, figures_listops.read_curves(run / "parse"), figures_listops.read_shown(run / "parse")
    )
    examples = read_optional(run / "explain" / "examples.json")
    movies = read_movies(paper / "pictures" / preset / "movies.json.gz")
    figures_explain.draw(folder, root / "build" / "sst", metrics, examples, movies)
    figures_theory.draw(folder, metrics, read_series(run))
    write_tables(target / "tables", metrics, starts)
    write_headline(target / "headline.json", headlines(metrics, preset))
    write_metrics(run / "metrics.json", metrics)


def main() -> None:
    """Parse and report."""
    parser = argparse.ArgumentParser(description="Gather and draw what the stages of a preset measured.")
    parser.add_argument("--preset", required=True, help="block of papers/sst/params.yaml")
    report(parser.parse_args().preset)


if __name__ == "__main__":
    errors.run(main)
