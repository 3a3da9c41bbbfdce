"""What the figures of the image networks are drawn from, and how networks are told apart in them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from shared.errors import UserError
from shared.report.looks import Look
from shared.report.style import COLOURS
from shared.results import read_rows

Rows = Sequence[Mapping[str, float]]
#: Arm -> seed -> name of the table -> rows.
Tables = Mapping[str, Mapping[str, Mapping[str, Rows]]]
#: Arm -> name -> images (N, C, H, W) in [0, 1].
Pictures = Mapping[str, Mapping[str, np.ndarray[Any, np.dtype[Any]]]]

MARKERS = ("o", "s", "^", "v", "D", "P", "X")
#: Which arms are kept where there is no room for all.
IMPORTANCE = (
    "jem",
    "classifier",
    "flow",
    "classifier_early",
    "classifier_smoothed",
    "classifier_noiseless",
    "jem_last",
)


def read_tables(folder: Path) -> dict[str, dict[str, dict[str, Rows]]]:
    """The tables `<arm>/<seed>/<table>.csv` of the folder of `evaluate`; none where nothing was written."""
    found: dict[str, dict[str, dict[str, Rows]]] = {}
    for path in sorted(folder.glob("*/seed*/*.csv")):
        found.setdefault(path.parts[-3], {}).setdefault(path.parts[-2], {})[path.stem] = read_rows(path)
    return found


def read_pictures(folder: Path) -> dict[str, dict[str, np.ndarray[Any, np.dtype[Any]]]]:
    """The pictures `<arm>.npz` of a folder, scaled to [0, 1]; `UserError` for a damaged one."""
    found = {}
    for path in sorted(folder.glob("*.npz")):
        try:
            with np.load(path, allow_pickle=False) as archive:
                found[path.stem] = {name: archive[name].astype(np.float32) / 255 for name in archive.files}
        except (OSError, ValueError) as error:
            raise UserError(f"cannot read {path}: {error}; run the evaluate stage") from None
    return found


def looks(arms: Mapping[str, str]) -> dict[str, Look]:
    """How arms, name -> label, are drawn, in their order; no two of 49 look alike."""
    colours = list(COLOURS.values())
    return {
        arm: Look(label, colours[i % len(colours)], MARKERS[(i + i // len(colours)) % len(MARKERS)])
        for i, (arm, label) in enumerate(arms.items())
    }


def chosen(arms: Sequence[str], most: int) -> list[str]:
    """At most `most` of the arms, those of most importance, in the order that they have."""
    ranked = sorted(arms, key=lambda arm: IMPORTANCE.index(arm) if arm in IMPORTANCE else len(IMPORTANCE))
    return [arm for arm in arms if arm in ranked[:most]]


def of_table(tables: Tables, arm: str, name: str) -> dict[str, Rows]:
    """Seed -> rows of one table of one arm, where it is not empty."""
    return {seed: by_name[name] for seed, by_name in tables.get(arm, {}).items() if by_name.get(name)}
