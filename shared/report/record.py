"""Packs a run into one file, to bring the results of another machine home.

    python -m shared.report.record nvae --preset gpu --figures samples.png kl_per_group.png

writes `papers/nvae/recorded/gpu-<device>.json` with the metrics, the provenance and the headline of `runs/gpu`, and
copies the named figures of `reports/nvae/figures` beside it. Claims and reports read it from there.
"""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

import msgspec

from shared import errors
from shared.errors import UserError
from shared.files import write_bytes, write_json
from shared.measurements import Recording, read_metrics
from shared.paths import PAPERS, ROOT
from shared.provenance import Record, read_records
from shared.report.blocks import device
from shared.report.records import read_headline

__all__ = ["record"]

LARGEST_FIGURE = 500_000  # bytes; recordings are in git


def record(name: str, preset: str, figures: Sequence[str] = (), root: Path = ROOT) -> Path:
    """Write the recording of one run; return its path.

    Args:
        name: the paper.
        preset: of the run.
        figures: names of files in `reports/<name>/figures`.
        root: the checkout.

    Raises:
        UserError: the run has no metrics or no provenance, a figure is missing or larger than `LARGEST_FIGURE`, or
            another device's recording of the same preset is there already.
    """
    if name not in PAPERS:
        raise UserError(f"no paper is named {name!r}; there are: {', '.join(PAPERS)}")
    run = root / "papers" / name / "runs" / preset
    metrics = read_metrics(run / "metrics.json")
    stages = read_records(run / "provenance")
    if not stages:
        raise UserError(
            f"{run / 'provenance'} is empty: a recording without provenance proves nothing; run the stages again"
        )
    slug = f"{preset}-{_slug(device(stages))}"
    folder = root / "papers" / name / "recorded"
    others = [path.name for path in folder.glob(f"{preset}-*.json") if path.stem != slug]
    if others:
        raise UserError(f"{folder}: {', '.join(others)} records preset {preset} already; remove it first")
    pictures = {file: _figure(root / "reports" / name / "figures" / file) for file in figures}
    headline = [each for each in read_headline(root / "reports" / name / "headline.json") if each.preset == preset]
    recording = Recording(
        preset=preset,
        device=device(stages),
        code_sha256=_main_stage(name, stages).code_sha256,
        metrics=metrics,
        provenance=stages,
        figures=tuple(f"recorded/{slug}/{file}" for file in pictures),
        headline=tuple(msgspec.to_builtins(each) for each in headline),
    )
    for file, content in pictures.items():
        write_bytes(folder / slug / file, content)
    path = folder / f"{slug}.json"
    write_json(path, msgspec.to_builtins(recording))
    return path


def _figure(path: Path) -> bytes:
    if not path.is_file():
        raise UserError(f"{path} is missing; draw the report of this preset first")
    if path.stat().st_size > LARGEST_FIGURE:
        raise UserError(f"{path} has {path.stat().st_size} bytes, more than {LARGEST_FIGURE}; choose a smaller figure")
    return path.read_bytes()


def _main_stage(name: str, stages: tuple[Record, ...]) -> Record:
    """A training stage; the longest stage where none is named so."""
    trained = [each for each in stages if each.script == f"papers/{name}/train.py"]
    return max(trained or stages, key=lambda each: each.wall_s)


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def main() -> None:
    """The command line; see the module's text."""
    parser = argparse.ArgumentParser(prog="python -m shared.report.record", description="Pack a run into one file.")
    parser.add_argument("paper")
    parser.add_argument("--preset", required=True)
    parser.add_argument("--figures", nargs="*", default=[], help="files in reports/PAPER/figures to take along")
    given = parser.parse_args()
    print(f"wrote {record(given.paper, given.preset, given.figures).relative_to(ROOT)}")


if __name__ == "__main__":
    errors.run(main)
