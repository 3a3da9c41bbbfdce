"""Results on disk: weights without pickle, curves as CSV, and metrics as metric -> arm -> key -> number."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from shared.errors import UserError
from shared.files import write_bytes, write_json, write_text

#: metric -> arm -> "seedN" or "exact" -> value
Metrics = dict[str, dict[str, dict[str, float]]]


def save_weights(path: Path, model: nn.Module) -> None:
    """Write a model's parameters and buffers, on the CPU, whole or not at all."""
    buffer = io.BytesIO()
    torch.save({name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}, buffer)
    write_bytes(path, buffer.getvalue())


def load_weights(path: Path, model: nn.Module) -> None:
    """Read what `save_weights` wrote into a model of the same shape (nothing is unpickled).

    Raises:
        UserError: the file is missing, damaged, or belongs to another model.
    """
    try:
        model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:  # noqa: BLE001  torch raises many kinds for a damaged file
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"cannot load weights from {path}: {reason}; run the train stage again") from None


def write_rows(path: Path, rows: Sequence[Mapping[str, float]]) -> None:
    """Write rows of numbers as CSV; the first row names the columns. Whole or not at all."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({name: f"{value:.6g}" if isinstance(value, float) else value for name, value in row.items()})
    write_text(path, text.getvalue())


def read_rows(path: Path) -> list[dict[str, float]]:
    """Read what `write_rows` wrote; `UserError` if the file is missing or a cell is not a number."""
    try:
        with open(path, newline="", encoding="utf-8") as file:
            return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"cannot read numbers from {path}: {error}") from None


def put(metrics: Metrics, metric: str, arm: str, key: str, value: float) -> None:
    """Set one number of a metrics tree."""
    metrics.setdefault(metric, {}).setdefault(arm, {})[key] = value


def merge(trees: Sequence[Metrics]) -> Metrics:
    """One tree from several; the same place in two of them is an error (`ValueError`)."""
    merged: Metrics = {}
    for tree in trees:
        for metric, arms in tree.items():
            for arm, values in arms.items():
                for key, value in values.items():
                    if key in merged.get(metric, {}).get(arm, {}):
                        raise ValueError(f"{metric}[{arm}] has two values for {key}")
                    put(merged, metric, arm, key, value)
    return merged


def write_metrics(path: Path, metrics: Metrics) -> None:
    """Write a metrics tree as JSON, rounded to 9 significant digits; `ValueError` for a value that is not finite."""

    def rounded(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: rounded(inner) for name, inner in value.items()}
        if not math.isfinite(value):
            raise ValueError(f"not a finite number: {value}")
        return value if isinstance(value, int) else float(f"{value:.9g}")

    write_json(path, rounded(metrics))
