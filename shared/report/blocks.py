"""The parts of a report that are the same for every paper: each makes Markdown from the records."""

from collections.abc import Sequence
from typing import Any

from shared.errors import UserError
from shared.measurements import Measurement, Summary, rank, summary
from shared.provenance import Record
from shared.report.records import Records
from shared.report.tables import Cell, duration, markdown, number

__all__ = [
    "benchmark_table",
    "claims_table",
    "footer",
    "headline_table",
    "paper_table",
    "paper_values",
    "presets",
    "verdicts",
]


def presets(records: Records) -> list[dict[str, Any]]:
    """The columns of a report: `preset`, `heading`, `recorded` (bool), `device`, `stale`, `wall` (text).

    The largest comes first. `gpu` and the report's own preset always have a column; others where there are numbers.
    """
    columns = []
    for preset in sorted({*records.measured, "gpu", records.preset}, key=rank, reverse=True):
        found = records.measured.get(preset)
        columns.append(
            {
                "preset": preset,
                "heading": f"{preset} (stale)" if found and found.stale else preset,
                "recorded": found is not None,
                "device": device(found.provenance) if found else "not recorded",
                "stale": found.stale if found else "",
                "wall": duration(sum(each.wall_s for each in found.provenance)) if found else "not recorded",
            }
        )
    return columns


def verdicts(records: Records) -> str:
    """One sentence with the verdict counts."""
    counts = records.verdicts
    total = sum(counts.values())
    parts = ", ".join(f"**{n} {verdict}**" for verdict, n in counts.items() if n)
    return f"{total} {'claim' if total == 1 else 'claims'}: {parts}." if total else "No claims are recorded."


def claims_table(records: Records, only: Sequence[str] = (), short: bool = False) -> str:
    """All claims at all presets (or those whose ids begin with one of `only`); `short` leaves columns for a slide."""
    rows = [row for row in records.rows if not only or row["id"].startswith(tuple(only))]
    if not rows:
        raise UserError(f"claims_table: no claim begins with {', '.join(only)}" if only else "claims_table: no claims")
    if short:
        return markdown(
            ["claim", "preset", "verdict"], [[row["statement"], row["preset"], row["verdict"]] for row in rows]
        )
    header = [
        "claim",
        "source",
        "paper",
        "ours",
        "interval of the comparison",
        "n",
        "spread over",
        "preset",
        "verdict",
        "why",
    ]
    return markdown(header, [_claim_cells(row) for row in rows])


def _claim_cells(row: dict[str, Any]) -> list[Cell]:
    return [
        f"**{row['id']}** {row['statement']}",
        row["source"],
        paper_values(row["paper"]),
        ", ".join(f"`{name}` {number(value)}" for name, value in row["ours"].items()) or None,
        None if row["interval"] is None else "[{}, {}]".format(*map(number, row["interval"])),
        row["n"],
        row["spread_over"],
        row["preset"],
        f"**{row['verdict']}**",
        row["why"],
    ]


def paper_values(paper: Any) -> str:
    """The paper's values as text: `with 3.16, without 3.19 bits/dim (unverified)`."""
    if paper is None:
        return "-"
    if not isinstance(paper, dict):
        return number(paper) if isinstance(paper, int | float) else str(paper)
    named = {key: value for key, value in paper.items() if key not in ("unit", "unverified")}
    texts = {key: number(value) if isinstance(value, int | float) else str(value) for key, value in named.items()}
    values = [text if key == "value" else f"{key} {text}" for key, text in texts.items()]
    unit = f" {paper['unit']}" if "unit" in paper and values else ""
    return ", ".join(values) + unit + (" (unverified)" if paper.get("unverified") else "")


def paper_table(records: Records, rows: Sequence[dict[str, Any]], form: str = ".4g") -> str:
    """One of the paper's tables beside our numbers: paper, a column a preset, then spread, n and what it is over.

    The last three tell of the report's own preset; the cells of other presets carry theirs in brackets.

    Args:
        records: of the paper.
        rows: each with `label` and `metric`; optional `arm` (default main), `unit`, `form`, `spread_over`, and the
            paper's value: `paper`, or `claim` and `key` to take it from claims.yaml.
        form: number format of rows that name none.

    Raises:
        UserError: a row has an unknown key or lacks one, or names an unknown claim or key of it.
    """
    columns = presets(records)
    header = ["", "paper", *(column["heading"] for column in columns)]
    header += [f"{what} ({records.preset})" for what in ("spread", "n")] + ["spread over"]
    cells = [_paper_cells(records, row, columns, form) for row in rows]
    return markdown(header, cells, align=f"lr{'r' * len(columns)}rrl")


def _paper_cells(records: Records, row: dict[str, Any], columns: list[dict[str, Any]], form: str) -> list[Cell]:
    unknown = set(row) - {"label", "metric", "arm", "unit", "form", "spread_over", "paper", "claim", "key"}
    if unknown or not {"label", "metric"} <= set(row):
        raise UserError(
            f"paper_table: a row needs label and metric, and knows no {', '.join(sorted(unknown)) or 'other'}"
        )
    form = row.get("form", form)
    found = {
        each.preset: summary(
            each.metrics, row["metric"], row.get("arm", "main"), row.get("spread_over", "training seeds")
        )
        for each in records.measured.values()
    }
    cells: list[Cell] = [f"{row['label']} ({row['unit']})" if "unit" in row else row["label"]]
    paper = _paper_value(records, row)
    cells.append(number(paper, form) if isinstance(paper, int | float) else paper)
    for column in columns:
        preset = column["preset"]
        if not column["recorded"]:
            cells.append("not recorded")
        else:
            cells.append(_measured_cell(found[preset], form, brief=preset == records.preset))
    own = found.get(records.preset)
    spread = None if own is None or own.spread is None else number(own.spread, form)
    return [*cells, spread, None if own is None else own.n, None if own is None else own.spread_over]


def _measured_cell(found: Summary | None, form: str, brief: bool) -> str:
    if found is None:
        return "not measured"
    if brief:
        return number(found.mean, form)
    spread = "" if found.spread is None else f"± {number(found.spread, form)}, "
    return f"{number(found.mean, form)} ({spread}n = {found.n})"


def _paper_value(records: Records, row: dict[str, Any]) -> float | str | None:
    if "claim" not in row:
        value: float | str | None = row.get("paper")
        return value
    claim = next((each for each in records.claims if each.id == row["claim"]), None)
    if claim is None:
        raise UserError(f"paper_table: no claim has the id {row['claim']!r}")
    if not isinstance(claim.paper, dict) or row.get("key") not in claim.paper:
        raise UserError(f"paper_table: claim {claim.id} has no value {row.get('key')!r} of the paper's")
    return claim.paper[str(row["key"])]


def headline_table(records: Records) -> str:
    """The headline numbers beside the paper's."""
    rows: list[list[Cell]] = [
        [
            f"{each.name} ({each.unit})" if each.unit else each.name,
            number(each.paper) if isinstance(each.paper, int | float) else each.paper,
            number(each.value),
            None if each.interval is None else "[{}, {}]".format(*map(number, each.interval)),
            each.n,
            each.spread_over,
            each.preset,
        ]
        for each in records.headline
    ]
    return markdown(["", "paper", "ours", "95 % interval", "n", "spread over", "preset"], rows, align="lrrrrll")


def benchmark_table(records: Records) -> str:
    """Our speeds and sizes beside those of the plain baseline."""
    rows: list[list[Cell]] = [
        [each.name, each.ours, each.baseline, each.unit, each.ratio, each.conditions] for each in records.benchmark
    ]
    if not rows:
        raise UserError(
            f"reports/{records.name}/benchmark.json has no entry; run `python -m benchmarks.{records.name}`"
        )
    return markdown(["", "ours", "baseline", "unit", "ratio", "conditions"], rows)


def footer(records: Records) -> str:
    """Where the numbers come from, for every preset with numbers: from the provenance records, never from this moment.

    Raises:
        UserError: the report's own preset has no provenance.
    """
    own = records.measured.get(records.preset)
    if own is None or not own.provenance:
        raise UserError(
            f"papers/{records.name}/runs/{records.preset} has no provenance; run `dvc repro papers/{records.name}`"
        )
    parts = []
    for each in sorted(records.measured.values(), key=lambda each: each.preset != records.preset):
        if each.provenance:
            parts.append(_provenance(each))
    return "\n\n".join(parts)


def _provenance(measurement: Measurement) -> str:
    stages = sorted(measurement.provenance, key=lambda each: (each.started_utc, each.stage))
    seeds = sorted({each.seed for each in stages if each.seed is not None})
    origin = "recorded on another machine" if measurement.recording else "run in this checkout"
    interrupted = sum(each.interruptions for each in stages)
    rows: list[list[Cell]] = [
        ["commit", _distinct(each.commit[:12] for each in stages)],
        ["code, settings and data as in that commit", _distinct(_clean(each) for each in stages)],
        ["code hash", _distinct(each.code_sha256[:12] for each in stages)],
        ["seeds", ", ".join(map(str, seeds)) or "none"],
        ["device", _distinct(each.device for each in stages)],
        ["wall time, all stages one after another", duration(sum(each.wall_s for each in stages))],
        ["begun", stages[0].started_utc],
        ["interruptions", str(interrupted)],
        ["versions", _distinct(", ".join(f"{k} {v}" for k, v in each.versions.items()) for each in stages)],
    ]
    if measurement.stale:
        rows.append(["**stale**", measurement.stale])
    detail = markdown(
        ["stage", "wall time", "begun", "commit", "code hash", "command"],
        [
            [e.stage, duration(e.wall_s), e.started_utc, e.commit[:12], e.code_sha256[:12], f"`{e.command}`"]
            for e in stages
        ],
    )
    head = f"**Preset {measurement.preset}**, {origin}"
    return f"{head}\n\n{markdown(['', ''], rows)}\n\n<details><summary>Stages</summary>\n\n{detail}\n\n</details>"


def _clean(record: Record) -> str:
    return "unknown" if isinstance(record.dirty, str) else "no, changed" if record.dirty else "yes"


def _distinct(texts: Any) -> str:
    """The different values in the order of their first appearance."""
    return "; ".join(dict.fromkeys(texts))


def device(stages: Sequence[Record]) -> str:
    """The device of the stage that took longest; "unknown" without stages."""
    return max(stages, key=lambda each: each.wall_s).device if stages else "unknown"
