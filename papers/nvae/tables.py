"""The tables of NVAE's report: likelihood beside the paper's rivals, the comparisons, memory of BN+Swish."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from papers.nvae import figures
from shared.measurements import summary
from shared.report.tables import Cell, number, write_csv
from shared.results import Metrics

#: Table 1 of the paper: method, MNIST (nats), CIFAR-10 (bits/dim). All but those of READ_IN_THE_PAPER are second-hand.
RIVALS: tuple[tuple[str, float | None, float | None], ...] = (
    ("NVAE without flows", 78.01, 2.93),
    ("NVAE with flows", 78.19, 2.91),
    ("BIVA", 78.41, 3.08),
    ("IAF-VAE", 79.10, 3.11),
    ("DVAE++", 78.49, 3.38),
    ("VFlow", None, 2.98),
    ("ANF", None, 3.05),
    ("Flow++", None, 3.08),
    ("Residual Flow", None, 3.28),
    ("Glow", None, 3.35),
    ("PixelVAE++ (autoregressive)", 78.00, 2.90),
    ("MAE (autoregressive)", 77.98, 2.95),
)
READ_IN_THE_PAPER = {("NVAE with flows", 2.91)}


def write_tables(folder: Path, metrics: Metrics, preset: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Rivals of table 1 with our value among them; the comparisons; the memory table."""
    ours = [summary(metrics, name) for name in ("mnist_nll_nats", "cifar10_bits_per_dim")]
    lines: list[list[Cell]] = []
    for method, *values in RIVALS:
        quoted = [
            None if v is None else f"{v:.2f}{'' if (method, v) in READ_IN_THE_PAPER else ' (unverified)'}"
            for v in values
        ]
        lines.append([method, *quoted])
    lines.append(
        [f"**here, {preset}**", *(None if found is None else f"**{number(found.mean, '.2f')}**" for found in ours)]
    )
    write_csv(folder / "likelihood.csv", ["method", "MNIST (nats)", "CIFAR-10 (bits/dim)"], lines)
    if rows:
        columns = ["question", "label", "against", "difference", "low", "high", "n", "diverged", "runs"]
        header = ["question", "changed", "against", "difference (nats)", "low", "high", "n", "diverged", "of runs"]
        write_csv(folder / "ablations.csv", header, [[row[column] for column in columns] for row in rows])
    if "fused" in metrics.get("saved_bytes", {}):
        write_csv(folder / "memory.csv", *memory_table(metrics))


def memory_table(metrics: Metrics) -> tuple[list[str], list[list[Cell]]]:
    """Header and rows: bytes, time against BN then SiLU with its 95 % interval, gradients against the first row."""
    header = [
        "BN+Swish as",
        "kept for backward (MB)",
        "peak of a step (MB)",
        "step (ms)",
        "step time ratio",
        "low",
        "high",
    ]
    rows: list[list[Cell]] = []
    for name in (name for name in figures.VARIANTS if name in metrics["saved_bytes"]):
        kept, peak, step, ratio, gradient = (
            summary(metrics, metric, name)
            for metric in ("saved_bytes", "peak_bytes", "step_ms", "step_time_ratio", "largest_gradient_difference")
        )
        ends = ratio.interval if ratio else None
        rows.append(
            [
                figures.VARIANTS[name],
                kept.mean / figures.MEGABYTE if kept else None,
                peak.mean / figures.MEGABYTE if peak else None,
                step.mean if step else None,
                ratio.mean if ratio else None,
                ends.low if ends else None,
                ends.high if ends else None,
                number(gradient.mean, ".1e") if gradient else None,
            ]
        )
    return [*header, "largest relative difference of a gradient"], rows
