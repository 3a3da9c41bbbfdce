"""A paper made up for the tests of the report layer: claims, numbers, figures and templates in any folder."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from shared.provenance import code_sha256
from shared.report import records, style, tables

ROOT_README = """# Title

<!-- papers:begin -->
<!-- papers:end -->

Between.

<!-- gallery:begin -->
old
<!-- gallery:end -->
End.
"""
CLAIMS = """
- id: C1-lower
  statement: The residual arm is lower | better.
  source: table 4
  paper: {with: 3.16, without: 3.19, unit: bits/dim}
  compare: nll_nats[residual] < nll_nats[absolute]
- {id: C2-days, statement: s, source: t, not_attempted: it takes eight days}
"""
REPORT = """# {{ title }}

{{ summary() }} NLL {{ value("nll_nats", "residual", ".1f") }} nats, {{ interval("nll_nats", "residual", ".1f") }},
sd {{ spread("nll_nats", "residual") }}, n = {{ n("nll_nats", "residual") }},
difference {{ difference("nll_nats", "residual", "absolute") }}, {{ claim("C1-lower").verdict }}.

{{ claims_table() }}

{{ paper_table([
  {"label": "NLL", "metric": "nll_nats", "arm": "residual", "unit": "nats", "paper": 78.01, "form": ".2f"},
  {"label": "bits", "metric": "bits", "claim": "C1-lower", "key": "with"},
]) }}

{{ headline_table() }}
{% if benchmark %}
{{ benchmark_table() }}
{% endif %}

{{ figure("curve.png", "The line falls.") }}

{{ table("t.csv", ["", ".1f"]) }}

{{ footer() }}
"""
SLIDES = """{{ front_matter() }}

# {{ title }}

$x^2$ over {{ n("nll_nats", "residual") }} seeds

---

# Claims

{{ claims_table() }}

---

# Figure

{{ figure("curve.png", "The line falls.") }}
"""


def provenance(stage: str, script: str, digest: str, wall_s: float, seed: int | None, preset: str) -> dict[str, Any]:
    """One stage's record."""
    return {
        "stage": stage,
        "script": script,
        "command": f"python -m {script}",
        "preset": preset,
        "seed": seed,
        "commit": "0123456789abcdef",
        "dirty": False,
        "code_sha256": digest,
        "device": "Processor Z, 2 threads",
        "wall_s": wall_s,
        "started_utc": f"2026-11-20T06:0{seed or 0}:00Z",
        "versions": {"python": "3.11.7", "torch": "2.13.0"},
        "interruptions": 1 if seed else 0,
    }


def metrics(shift: float = 0.0) -> dict[str, Any]:
    """Three seeds of two arms; the residual one is lower in each."""
    residual = {"seed0": 81.0 + shift, "seed1": 82.0 + shift, "seed2": 83.5 + shift}
    absolute = {"seed0": 83.0 + shift, "seed1": 84.1 + shift, "seed2": 85.4 + shift}
    return {"nll_nats": {"residual": residual, "absolute": absolute}, "bytes": {"main": {"exact": 1234}}}


def make(root: Path, name: str = "nvae", preset: str = "laptop") -> Path:
    """Write a paper with one run; return its folder."""
    folder, report = root / "papers" / name, root / "reports" / name
    (folder / "runs" / preset / "provenance").mkdir(parents=True)
    texts = {
        "README.md": f"# The {name} paper\n",
        "params.yaml": f"preset: {preset}\n",
        "claims.yaml": CLAIMS,
        "train.py": "",
        "report.md.j2": REPORT,
        "slides.md.j2": SLIDES,
    }
    for file, text in texts.items():
        (folder / file).write_text(text)
    if not (root / "README.md").exists():
        (root / "README.md").write_text(ROOT_README)
    run = folder / "runs" / preset
    (run / "metrics.json").write_text(json.dumps(metrics()))
    digest = code_sha256(folder / "train.py", root)
    for seed in range(3):
        record = provenance(f"train-seed{seed}", f"papers/{name}/train.py", digest, 600.0 + seed, seed, preset)
        (run / "provenance" / f"train-seed{seed}.json").write_text(json.dumps(record))
    entry = records.headline("NLL", metrics(), "nll_nats", "residual", preset=preset, unit="nats", paper=78.01)
    records.write_headline(report / "headline.json", [entry])
    figure, (axes,) = style.new_figure(6, 3)
    style.draw_seeds(axes, [0, 1, 2], {"seed0": [3.0, 2.0, 1.0], "seed1": [3.5, 2.0, 1.5]}, "loss")
    axes.set_xlabel("epoch")
    axes.set_ylabel("loss (nats)")
    style.save(figure, report / "figures" / "curve.png")
    tables.write_csv(report / "tables" / "t.csv", ["arm", "x"], [["a", 1.25], ["b", None]])
    return folder


def samples() -> np.ndarray[Any, np.dtype[np.float64]]:
    """Five grey images of 4 by 6 pixels, each of one brightness."""
    return np.ones((5, 1, 4, 6)) * np.linspace(0, 1, 5)[:, None, None, None]
