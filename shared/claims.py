"""The papers' claims as records, each checked against the measured numbers.

    python -m shared.claims nvae      # one line a claim; exit status 1 only for a malformed file

`papers/<name>/claims.yaml` is a list of records with the keys of `Claim`.
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec

from shared import comparisons, errors, expressions
from shared.errors import UserError
from shared.measurements import Measurement, chosen_preset, load, rank
from shared.paths import ROOT
from shared.settings import Settings, convert, read_yaml

__all__ = ["VERDICTS", "Claim", "Row", "check", "count", "of_paper", "read"]

#: In the order of reports.
VERDICTS = ("reproduced", "not reproduced", "inconclusive", "not attempted")

PRESET = r"^(smoke|laptop|gpu(_\w+)?|paper(_\w+)?)$"
Text = Annotated[str, msgspec.Meta(min_length=1)]
#: One checked claim at one preset: id, statement, source, paper, compare, ours, interval, n, spread_over, preset,
#: verdict, why.
Row = dict[str, Any]


class Claim(Settings, frozen=True, kw_only=True):
    """One claim of a paper."""

    id: Text  # begins with the label that the paper's README uses, e.g. C4-residual-posterior
    statement: Text
    source: Text  # where the paper says so: table, figure, section
    paper: dict[str, float | str | bool] | float | str | None = None  # the paper's values, `unit`, `unverified: true`
    compare: Text | None = None  # see `shared.expressions`
    presets: tuple[Annotated[str, msgspec.Meta(pattern=PRESET)], ...] = ("laptop", "gpu")
    spread_over: Text = "training seeds"
    not_attempted: Text | None = None  # why there is no measurement
    note: Text | None = None  # a diagnosis, added to `why`
    unit: Text | None = None


def of_paper(name: str, root: Path = ROOT) -> tuple[Claim, ...]:
    """The claims of one paper; see `read`."""
    return read(root / "papers" / name / "claims.yaml")


def read(path: Path) -> tuple[Claim, ...]:
    """Read and validate a claims.yaml.

    Raises:
        UserError: naming file, claim and reason: not YAML, an unknown or missing key, an id used twice, a malformed
            expression, or a claim with neither `compare` nor `not_attempted`.
    """
    document = read_yaml(path)
    if not isinstance(document, list):
        raise UserError(f"{path}: expected a list of claims, got {type(document).__name__}")
    claims: dict[str, Claim] = {}
    for number, item in enumerate(document, 1):
        where = f"{path}: {item.get('id', f'claim {number}') if isinstance(item, dict) else f'claim {number}'}"
        if not isinstance(item, dict):
            raise UserError(f"{where}: expected a record with id, statement, source, got {item!r}")
        claim = convert(item, Claim, where)
        if claim.id in claims:
            raise UserError(f"{where}: this id is used twice")
        if not claim.presets:
            raise UserError(f"{where}: presets: name at least one")
        if claim.compare is None and claim.not_attempted is None:
            raise UserError(f"{where}: give `compare`, or `not_attempted` with the reason")
        if claim.compare is not None:
            try:
                expressions.parse(claim.compare)
            except ValueError as error:
                raise UserError(f"{where}: compare: {error}") from None
        claims[claim.id] = claim
    return tuple(claims.values())


def check(name: str, preset: str | None = None, root: Path = ROOT) -> list[Row]:
    """Check every claim of a paper at every one of its presets that has measurements.

    A claim without measurements at any of its presets gives one row, "not attempted" with the reason.

    Args:
        name: the paper.
        preset: the one that the report is drawn from (default: the one in params.yaml); matters for `smoke` only,
            which counts for nothing else.
        root: the checkout.

    Raises:
        UserError: claims or measurements are malformed; never because of a verdict.
    """
    claims = of_paper(name, root)
    measured = load(name, preset or chosen_preset(name, root), root)
    return [row for claim in claims for row in _rows(claim, measured)]


def count(rows: list[Row], preset: str) -> dict[str, int]:
    """How many claims have each verdict; every claim counts once.

    The verdict of a claim is the one at the report's preset; where the claim was not attempted there, the one at the
    largest preset at which it was.
    """
    largest_first = sorted(rows, key=lambda row: rank(row["preset"]), reverse=True)
    best: dict[str, Row] = {}
    for row in sorted(largest_first, key=lambda row: (row["verdict"] == "not attempted", row["preset"] != preset)):
        best.setdefault(row["id"], row)
    return {verdict: sum(row["verdict"] == verdict for row in best.values()) for verdict in VERDICTS}


def _rows(claim: Claim, measured: Mapping[str, Measurement]) -> list[Row]:
    present = [measured[preset] for preset in claim.presets if preset in measured]
    if claim.compare is None or not present:
        reason = claim.not_attempted or f"no run at preset {' or '.join(claim.presets)} is recorded"
        return [_row(claim, claim.presets[0], _nothing(claim, reason), "")]
    parsed = expressions.parse(claim.compare)
    rows = []
    for each in present:
        missing = [name for name in expressions.operands(parsed) if name.arm not in each.metrics.get(name.metric, {})]
        if missing:
            reason = f"no measurement of {', '.join(map(str, missing))} at preset {each.preset}"
            judged = _nothing(claim, f"{claim.not_attempted} ({reason})" if claim.not_attempted else reason)
        else:
            judged = comparisons.judge(parsed, each.metrics, claim.spread_over)
        rows.append(_row(claim, each.preset, judged, each.stale))
    return rows


def _nothing(claim: Claim, reason: str) -> comparisons.Judgement:
    return comparisons.Judgement("not attempted", {}, None, 0, claim.spread_over, reason)


def _row(claim: Claim, preset: str, judged: comparisons.Judgement, stale: str) -> Row:
    paper = claim.paper
    if claim.unit and not (isinstance(paper, dict) and "unit" in paper):
        paper = {
            **(paper if isinstance(paper, dict) else {} if paper is None else {"value": paper}),
            "unit": claim.unit,
        }
    return {
        "id": claim.id,
        "statement": claim.statement,
        "source": claim.source,
        "paper": paper,
        "compare": claim.compare,
        "ours": {name: _rounded(value) for name, value in judged.ours.items()},
        "interval": None if judged.interval is None else [_rounded(end) for end in judged.interval],
        "n": judged.n,
        "spread_over": judged.spread_over,
        "preset": preset,
        "verdict": judged.verdict,
        "why": "; ".join(part for part in (judged.why, claim.note, stale) if part),
    }


def _rounded(value: float) -> float:
    """Ten digits: more than any measurement has, and the same on processors that round the last bit differently."""
    return float(f"{value:.10g}")


def main() -> None:
    """Print the verdicts of the papers named on the command line."""
    if not sys.argv[1:]:
        raise UserError("usage: python -m shared.claims PAPER ...")
    for name in sys.argv[1:]:
        for row in check(name):
            print(f"{name} {row['id']} at {row['preset']}: {row['verdict']} ({row['why']})")


if __name__ == "__main__":
    errors.run(main)
