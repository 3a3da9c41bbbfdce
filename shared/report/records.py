"""What a report is drawn from: one paper's measurements, claims, headline and benchmark, read once."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from shared.claims import Claim, Row, check, count, of_paper
from shared.comparisons import Metrics
from shared.errors import UserError
from shared.files import read_json, write_json
from shared.measurements import Measurement, chosen_preset, load, summary
from shared.paths import ROOT

__all__ = ["Benchmark", "Headline", "Records", "gather", "headline", "read_headline", "title", "write_headline"]


class Headline(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One of the few numbers that a reader asks for first."""

    name: str  # a few words, e.g. "MNIST negative log-likelihood"
    preset: str
    value: float
    unit: str
    interval: tuple[float, float] | None = None  # 95 %
    n: int
    spread_over: str
    paper: float | str | None = None  # the paper's value


class Benchmark(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One speed or size against its plain baseline, from the same run: `ratio` is ours over the baseline's."""

    name: str
    ours: float
    baseline: float
    unit: str
    ratio: float
    conditions: str


@dataclass(frozen=True)
class Records:
    """Everything measured and claimed for one paper."""

    name: str
    title: str
    preset: str  # the preset that the report is drawn from
    root: Path
    measured: dict[str, Measurement]
    claims: tuple[Claim, ...]
    rows: list[Row]
    headline: list[Headline]  # of the report's preset, then of the recorded runs
    benchmark: list[Benchmark]

    @property
    def folder(self) -> Path:
        """Where the report lies: `reports/<name>`."""
        return self.root / "reports" / self.name

    @property
    def verdicts(self) -> dict[str, int]:
        """Claims by verdict; see `shared.claims.count`."""
        return count(self.rows, self.preset)


def gather(name: str, preset: str | None = None, root: Path = ROOT) -> Records:
    """Read and check all records of one paper.

    Raises:
        UserError: a file is malformed.
    """
    chosen = preset or chosen_preset(name, root)
    folder = root / "reports" / name
    numbers = read_headline(folder / "headline.json")
    if numbers and numbers[0].preset != chosen:
        raise UserError(
            f"{folder / 'headline.json'} is from preset {numbers[0].preset}, the report is to be drawn from {chosen}; "
            f"run `dvc repro papers/{name}`, or give --preset {numbers[0].preset}"
        )
    measured = load(name, chosen, root)
    return Records(
        name=name,
        title=title(name, root),
        preset=chosen,
        root=root,
        measured=measured,
        claims=of_paper(name, root),
        rows=check(name, chosen, root),
        headline=[*numbers, *_recorded_headlines(name, measured)],
        benchmark=_read(folder / "benchmark.json", list[Benchmark]),
    )


def title(name: str, root: Path = ROOT) -> str:
    """The first heading of `papers/<name>/README.md`; the folder's name where there is none."""
    path = root / "papers" / name / "README.md"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return next((line[2:].strip() for line in lines if line.startswith("# ")), name)


def headline(
    name: str,
    metrics: Metrics,
    metric: str,
    arm: str = "main",
    *,
    preset: str,
    unit: str,
    paper: float | str | None = None,
    spread_over: str = "training seeds",
) -> Headline:
    """Make a headline entry from a metric.

    Args:
        name: a few words for the index.
        metrics: of `shared.measurements.read_metrics`.
        metric: e.g. `test_nll_nats`.
        arm: e.g. `main`.
        preset: at which it was measured.
        unit: e.g. `nats`.
        paper: the paper's value.
        spread_over: what the keys of the metric stand for.

    Raises:
        UserError: the metric was not measured for this arm.
    """
    found = summary(metrics, metric, arm, spread_over)
    if found is None:
        raise UserError(f"headline {name!r}: no measurement of {metric}[{arm}] at preset {preset}")
    return Headline(
        name=name,
        preset=preset,
        value=found.mean,
        unit=unit,
        interval=found.interval,
        n=found.n,
        spread_over=found.spread_over,
        paper=paper,
    )


def write_headline(path: Path, entries: Sequence[Headline]) -> None:
    """Write `reports/<name>/headline.json`; the first entry is the one that the index shows.

    Raises:
        UserError: there is no entry, or the file cannot be written.
    """
    if not entries:
        raise UserError(f"{path}: a headline needs at least one entry")
    write_json(path, msgspec.to_builtins(list(entries)))


def read_headline(path: Path) -> list[Headline]:
    """Read a headline.json; a missing file is an empty list.

    Raises:
        UserError: it is not a list of headline entries.
    """
    entries: list[Headline] = _read(path, list[Headline])
    return entries


def _recorded_headlines(name: str, measured: dict[str, Measurement]) -> list[Headline]:
    """The headline numbers that came home with the recorded runs."""
    found = [entry for each in measured.values() if each.recording for entry in each.recording.headline]
    try:
        return msgspec.convert(found, list[Headline])
    except msgspec.ValidationError as error:
        raise UserError(f"papers/{name}/recorded: headline: {error}") from None


def _read(path: Path, kind: Any) -> Any:
    if not path.is_file():
        return []
    try:
        return msgspec.convert(read_json(path), kind)
    except msgspec.ValidationError as error:
        raise UserError(f"{path}: {error}") from None
