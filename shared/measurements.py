"""The measured numbers of a paper: what its stages wrote here, and what was brought home from other machines."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from shared.comparisons import Metrics
from shared.errors import UserError
from shared.paths import PAPERS, ROOT
from shared.provenance import Record, code_sha256, read_records
from shared.settings import read_yaml
from shared.statistics import Interval, mean, standard_deviation, student_interval

__all__ = ["PRESETS", "Measurement", "Recording", "Summary", "chosen_preset", "load", "rank", "read_metrics", "summary"]

#: From the smallest to the paper's own. A paper may add variants of the last two, such as gpu_cifar10.
PRESETS = ("smoke", "laptop", "gpu", "paper")


class Recording(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A run made on another machine: `papers/<name>/recorded/<preset>-<device>.json`."""

    preset: str
    device: str
    code_sha256: str
    metrics: dict[str, dict[str, dict[str, float]]]
    provenance: tuple[Record, ...]
    figures: tuple[str, ...] = ()  # relative to papers/<name>
    headline: tuple[dict[str, Any], ...] = ()


class Measurement(NamedTuple):
    """What is known of a paper at one preset."""

    preset: str
    metrics: Metrics
    provenance: tuple[Record, ...]
    recording: Recording | None  # None for a run of this checkout
    stale: str  # why the numbers no longer belong to the code; empty when they do


class Summary(NamedTuple):
    """One metric of one arm over its seeds."""

    mean: float
    spread: float | None  # standard deviation over the seeds; None when n < 2
    interval: Interval | None  # Student's 95 % interval of the mean; None when n < 2
    n: int
    spread_over: str


def rank(preset: str) -> tuple[int, str]:
    """A sort key: the smallest preset first, a variant after the preset that it varies.

    Raises:
        ValueError: it is not a preset's name.
    """
    base = preset.split("_")[0]
    if base not in PRESETS or (preset != base and base not in ("gpu", "paper")):
        raise ValueError(f"{preset!r} is none of {', '.join(PRESETS)}, nor gpu_... or paper_...")
    return PRESETS.index(base), preset


def chosen_preset(name: str, root: Path = ROOT) -> str:
    """The preset that `papers/<name>/params.yaml` names.

    Raises:
        UserError: the file or its key `preset` is missing, or the preset is unknown.
    """
    path = root / "papers" / name / "params.yaml"
    document = read_yaml(path)
    preset = document.get("preset") if isinstance(document, dict) else None
    _known(str(preset), path)
    return str(preset)


def load(name: str, preset: str, root: Path = ROOT) -> dict[str, Measurement]:
    """Everything measured for a paper, by preset, from the smallest to the largest.

    A run of this checkout (`runs/<preset>/metrics.json`) goes before a recording of the same preset. The smoke preset
    counts only when it is the one asked for: it proves the pipeline, not the paper.

    Args:
        name: one of the nine papers.
        preset: the preset that the report is drawn from.
        root: the checkout.

    Raises:
        UserError: the paper is unknown, a file is malformed, or two recordings are of the same preset.
    """
    if name not in PAPERS:
        raise UserError(f"no paper is named {name!r}; there are: {', '.join(PAPERS)}")
    folder = root / "papers" / name
    recordings = _recordings(folder)
    found: dict[str, Measurement] = {}
    runs = {_known(path.parent.name, path.parent): path for path in (folder / "runs").glob("*/metrics.json")}
    for each in sorted({*runs, *recordings}, key=rank):
        if each == "smoke" and preset != "smoke":
            continue
        if each in runs:
            provenance = read_records(runs[each].parent / "provenance")
            found[each] = Measurement(each, read_metrics(runs[each]), provenance, None, "")
        else:
            kept = recordings[each]
            found[each] = Measurement(each, kept.metrics, kept.provenance, kept, _staleness(name, kept, root))
    return found


def read_metrics(path: Path) -> dict[str, dict[str, dict[str, float]]]:
    """Read a metrics.json: metric -> arm -> key -> number, the key "exact" or a seed.

    Raises:
        UserError: the file is missing or does not have this form.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, dict[str, dict[str, float]]])
    except OSError as error:
        raise UserError(
            f"cannot read {path}: {error.strerror or error}; run `dvc repro` for this paper first"
        ) from None
    except msgspec.DecodeError as error:
        raise UserError(f"{path}: not metric -> arm -> seed -> number: {error}") from None


def summary(metrics: Metrics, metric: str, arm: str = "main", spread_over: str = "training seeds") -> Summary | None:
    """Mean and spread of one metric of one arm; None when it was not measured.

    A single seed has no spread, unless the companion metric `<metric>_standard_error` tells one over the test images:
    then the interval is m +- 1.96 e, and the spread is e itself.
    """
    values = metrics.get(metric, {}).get(arm, {})
    if not values:
        return None
    numbers = list(values.values())
    if "exact" in values:
        return Summary(numbers[0], None, None, 1, "nothing: exact")
    if len(numbers) > 1:
        return Summary(mean(numbers), standard_deviation(numbers), student_interval(numbers), len(numbers), spread_over)
    error = metrics.get(f"{metric}_standard_error", {}).get(arm, {}).get(next(iter(values)))
    if error is None:
        return Summary(numbers[0], None, None, 1, "one seed: unknown")
    interval = Interval(numbers[0] - 1.96 * error, numbers[0] + 1.96 * error)
    return Summary(numbers[0], error, interval, 1, "test images")


def mean_and_ends(metrics: Metrics, metric: str, arm: str) -> list[float | None]:
    """Mean and both ends of its 95 % interval, three cells of a table; each None where it is not known."""
    found = summary(metrics, metric, arm)
    ends = found.interval if found else None
    return [found.mean if found else None, ends.low if ends else None, ends.high if ends else None]


def _known(preset: str, path: Path) -> str:
    try:
        rank(preset)
    except ValueError as error:
        raise UserError(f"{path}: preset: {error}") from None
    return preset


def _recordings(folder: Path) -> Mapping[str, Recording]:
    found: dict[str, Recording] = {}
    files: dict[str, Path] = {}
    for path in sorted((folder / "recorded").glob("*.json")):
        try:
            recording = msgspec.json.decode(path.read_bytes(), type=Recording)
        except msgspec.DecodeError as error:
            raise UserError(f"{path}: not a recorded run: {error}") from None
        _known(recording.preset, path)
        if recording.preset in files:
            raise UserError(
                f"{path} and {files[recording.preset].name} both record preset {recording.preset}; keep one"
            )
        found[recording.preset], files[recording.preset] = recording, path
    return found


def _staleness(name: str, recording: Recording, root: Path) -> str:
    """Why a recording no longer belongs to the present code: the first script whose hash differs, or nothing."""
    runs = [(record.script, record.code_sha256) for record in recording.provenance if record.script]
    for script, then in dict.fromkeys(runs or [(f"papers/{name}/train.py", recording.code_sha256)]):
        path = root / script
        now = code_sha256(path, root) if path.is_file() else "none"
        if now != then:
            return f"stale: the code of {script} has changed since this run ({then[:8]} then, {now[:8]} now)"
    return ""
