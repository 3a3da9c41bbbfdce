"""Filling a paper's templates, `report.md.j2` and `slides.md.j2`, with its measured numbers.

What a template may use is what `context` returns. A name that is not there, a metric that was not measured and a
missing figure are errors that name the template and its line.
"""

import traceback
from pathlib import Path
from typing import Any

import jinja2

from shared.claims import Row
from shared.errors import UserError
from shared.measurements import Measurement, Summary, summary
from shared.report import blocks
from shared.report.records import Records
from shared.report.tables import markdown, number, read_csv
from shared.statistics import mean, paired_differences, student_interval

__all__ = ["context", "front_matter", "render", "report", "slides"]

#: Beside the paper's other files, in papers/<name>.
REPORT = "report.md.j2"
SLIDES = "slides.md.j2"


def report(records: Records) -> str:
    """The text of `reports/<name>/README.md`.

    Raises:
        UserError: the template is missing or names something that does not exist; the message has file and line.
    """
    source = f"papers/{records.name}/{REPORT}"
    mark = f"<!-- Generated from {source} and the measured records. Edit the template, not this file. -->\n\n"
    return mark + render(records.root / source, context(records, slide=False))


def slides(records: Records) -> str | None:
    """The text of `reports/<name>/slides.md`, or None for a paper without `slides.md.j2`.

    Raises:
        UserError: as `report`; also when the template does not begin with `{{ front_matter() }}`.
    """
    path = records.root / "papers" / records.name / SLIDES
    if not path.is_file():
        return None
    text = render(path, context(records, slide=True))
    if not text.startswith("---\n"):
        raise UserError(f"{path}: slides begin with {{{{ front_matter() }}}}")
    return text


def render(path: Path, names: dict[str, Any]) -> str:
    """Fill one template; see `report` for the errors."""
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined,
        autoescape=False,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        loader=jinja2.FileSystemLoader(path.parent),
    )
    try:
        return environment.get_template(path.name).render(names)
    except jinja2.TemplateSyntaxError as error:
        raise UserError(f"{error.filename or path}:{error.lineno}: {error.message}") from None
    except jinja2.TemplateNotFound as error:
        raise UserError(f"{path.parent / str(error.name)} is missing: a paper's folder needs it") from None
    except (UserError, jinja2.UndefinedError, ArithmeticError, LookupError, TypeError, ValueError) as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        raise UserError(f"{path}:{lines[-1] if lines else 1}: {error}") from None


def front_matter(records: Records) -> str:
    """The head of a Marp presentation."""
    lines = ["marp: true", "theme: seminar", "math: mathjax", "paginate: true", f'title: "{records.title}"']
    note = f"# Generated from papers/{records.name}/{SLIDES} and the measured records. Edit the template."
    return "\n".join(["---", note, *lines, "---"])


def context(records: Records, slide: bool) -> dict[str, Any]:
    """Everything that a template may call.

    Values: `name`, `title`, `preset`, `headline` (list), `claims` (rows), `verdicts` (counts), `benchmark` (list).
    Functions: those of `Numbers` (value, interval, spread, n, difference, ratio, has), `claim(id)`, `figure`,
    `has_figure(file, preset)` (whether a recorded run has it), `table`, `presets()`, `summary()`, `claims_table()`,
    `headline_table()`, `paper_table(rows)`, `benchmark_table()`, `footer()`, and in slides `front_matter()`.

    Args:
        records: of the paper.
        slide: whether figures are written for Marp, which fits them to the slide.
    """
    numbers = Numbers(records)
    return {
        "name": records.name,
        "title": records.title,
        "preset": records.preset,
        "headline": records.headline,
        "claims": records.rows,
        "verdicts": records.verdicts,
        "benchmark": records.benchmark,
        "number": number,
        "value": numbers.value,
        "interval": numbers.interval,
        "spread": numbers.spread,
        "n": numbers.n,
        "difference": numbers.difference,
        "ratio": numbers.ratio,
        "has": numbers.has,
        "claim": lambda id, preset=None: _claim(records, id, preset),
        "figure": lambda file, caption, **options: _figure(records, slide, file, caption, **options),
        "has_figure": lambda file, preset: _link(records, file, preset) is not None,
        "table": lambda file, forms=None: _table(records, file, forms),
        "presets": lambda: blocks.presets(records),
        "summary": lambda: blocks.verdicts(records),
        "claims_table": lambda only=(), short=slide: blocks.claims_table(records, only, short),
        "headline_table": lambda: blocks.headline_table(records),
        "paper_table": lambda rows, form=".4g": blocks.paper_table(records, rows, form),
        "benchmark_table": lambda: blocks.benchmark_table(records),
        "footer": lambda: blocks.footer(records),
        **({"front_matter": lambda: front_matter(records)} if slide else {}),
    }


class Numbers:
    """The measured numbers as text; every function takes `preset=` to look at another one than the report's."""

    def __init__(self, records: Records) -> None:
        self._records = records

    def value(self, metric: str, arm: str = "main", form: str = ".4g", preset: str | None = None) -> str:
        """The mean over seeds."""
        return number(self._summary(metric, arm, preset).mean, form)

    def interval(self, metric: str, arm: str = "main", form: str = ".4g", preset: str | None = None) -> str:
        """The 95 % interval of the mean, `[81.1, 81.9]`."""
        ends = self._summary(metric, arm, preset).interval
        return "unknown (one seed)" if ends is None else f"[{number(ends.low, form)}, {number(ends.high, form)}]"

    def spread(self, metric: str, arm: str = "main", form: str = ".2g", preset: str | None = None) -> str:
        """The standard deviation over seeds."""
        found = self._summary(metric, arm, preset).spread
        return "unknown (one seed)" if found is None else number(found, form)

    def n(self, metric: str, arm: str = "main", preset: str | None = None) -> int:
        """The number of seeds."""
        return self._summary(metric, arm, preset).n

    def difference(self, metric: str, arm: str, other: str, form: str = ".3g", preset: str | None = None) -> str:
        """The mean of `arm` minus `other` over their common seeds, with its 95 % interval: `-1.2 [-1.9, -0.5]`."""
        return self._paired(metric, arm, other, form, preset, ratio=False)

    def ratio(self, metric: str, arm: str, other: str, form: str = ".3g", preset: str | None = None) -> str:
        """The mean of `arm` over `other` by seed, with its 95 % interval: `0.71 [0.69, 0.73]`."""
        return self._paired(metric, arm, other, form, preset, ratio=True)

    def has(self, preset: str, metric: str | None = None, arm: str = "main") -> bool:
        """Whether there are numbers at a preset (of a metric and arm)."""
        found = self._records.measured.get(preset)
        return found is not None and (metric is None or arm in found.metrics.get(metric, {}))

    def _measurement(self, preset: str | None) -> Measurement:
        wanted = preset or self._records.preset
        if wanted not in self._records.measured:
            raise UserError(f"nothing is measured at preset {wanted}; run `dvc repro papers/{self._records.name}`")
        return self._records.measured[wanted]

    def _summary(self, metric: str, arm: str, preset: str | None) -> Summary:
        measurement = self._measurement(preset)
        found = summary(measurement.metrics, metric, arm)
        if found is None:
            raise UserError(f"no measurement of {metric}[{arm}] at preset {measurement.preset}")
        return found

    def _paired(self, metric: str, arm: str, other: str, form: str, preset: str | None, ratio: bool) -> str:
        for each in (arm, other):
            self._summary(metric, each, preset)
        arms = self._measurement(preset).metrics[metric]
        common = paired_differences(arms[arm], arms[other])
        if ratio and not all(arms[other][key] for key in common):
            return "not defined (division by 0)"
        values = [arms[arm][key] / arms[other][key] for key in common] if ratio else list(common.values())
        if not values:
            raise UserError(f"{metric}[{arm}] and {metric}[{other}] have no seed in common")
        if len(values) == 1:
            return number(values[0], form)
        ends = student_interval(values)
        return f"{number(mean(values), form)} [{number(ends.low, form)}, {number(ends.high, form)}]"


def _claim(records: Records, id: str, preset: str | None) -> Row:
    """The row of a claim, at the preset that its verdict is counted at unless another is named."""
    rows = [row for row in records.rows if row["id"] == id and preset in (None, row["preset"])]
    if not rows:
        raise UserError(f"no claim has the id {id!r}" + (f" at preset {preset}" if preset else ""))
    own = [row for row in rows if row["preset"] == records.preset and row["verdict"] != "not attempted"]
    tried = [row for row in rows if row["verdict"] != "not attempted"]
    return (own or tried[::-1] or rows)[0]


def _figure(records: Records, slide: bool, file: str, caption: str, preset: str | None = None, size: str = "") -> str:
    """Markdown of a figure with its one-sentence caption.

    A figure of another preset is one that came home with its recording; its caption says of which run it is, since it
    stands among figures of the report's own. `size` is Marp's, e.g. `w:900` or `right:40%`.
    """
    if not caption.strip().endswith((".", "?", "!")):
        raise UserError(f"figure {file}: the caption is one sentence that says what to see, got {caption!r}")
    link = _link(records, file, preset)
    if link is None:
        raise UserError(f"figure {file}: not among the recorded figures of preset {preset}; ask has_figure first")
    if not (records.folder / link).is_file():
        raise UserError(f"figure {records.folder / link} is missing; papers/{records.name}/report.py draws it")
    other = records.measured[preset] if preset and preset != records.preset else None
    if other is not None and other.recording is not None:
        caption += f" Preset {preset}{' (stale)' if other.stale else ''}, recorded on {other.recording.device}."
    if slide:
        return f"![{size or 'h:440'}]({link})\n\n<small>{caption}</small>"
    return f"![{caption}]({link})\n\n*{caption}*"


def _link(records: Records, file: str, preset: str | None) -> str | None:
    """The way from the report to a figure: its own, or one of a recorded run; None where the recording has none."""
    if preset in (None, records.preset):
        return f"figures/{file}"
    recording = records.measured[preset].recording if preset in records.measured else None
    names = [name for name in (recording.figures if recording else ()) if Path(name).name == file]
    return f"../../papers/{records.name}/{names[0]}" if names else None


def _table(records: Records, file: str, forms: list[str] | None) -> str:
    header, rows = read_csv(records.folder / "tables" / file)
    return markdown(header, rows, forms)
