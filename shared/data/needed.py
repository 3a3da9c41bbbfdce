"""Which data sets one preset of a paper needs, for `make reproduce`.

    python -m shared.data.needed nvae                  # at the preset that params.yaml names
    python -m shared.data.needed nvae gpu_cifar10      # prints: cifar10 mnist

Stages depend on the manifest of every set that some preset uses; nobody should have to fetch them all to run one.
"""

import sys
from pathlib import Path

from shared import errors, pipelines
from shared.errors import UserError
from shared.measurements import PRESETS, chosen_preset
from shared.paths import ROOT
from shared.settings import read_yaml


def needed(name: str, preset: str | None = None, root: Path = ROOT) -> tuple[str, ...]:
    """The sets named as `data` by the preset and by the blocks of params.yaml that are no presets (comparisons).

    All sets that the paper's stages depend on, where none of these blocks names one.

    Args:
        name: the paper.
        preset: default: the one that params.yaml names.
        root: the checkout.

    Raises:
        UserError: no such paper or preset.
    """
    path = root / "papers" / name / "params.yaml"
    blocks = {key: block for key, block in read_yaml(path).items() if isinstance(block, dict)}
    presets = [key for key in blocks if key.split("_")[0] in PRESETS]
    chosen = preset or chosen_preset(name, root)
    if chosen not in presets:
        raise UserError(f"{path}: no preset {chosen!r}; there are: {', '.join(presets)}")
    users = [block for key, block in blocks.items() if key == chosen or key not in presets]
    named = {str(block["data"]) for block in users if "data" in block}
    # DVC is asked only where it has to be: to load it takes longer than all the rest of `make reproduce` without work.
    return tuple(sorted(named)) or pipelines.data_sets(name, root)


def main() -> None:
    """Print the sets, separated by blanks."""
    match sys.argv[1:]:
        case [name]:
            print(*needed(name))
        case [name, preset]:
            print(*needed(name, preset))
        case _:
            raise UserError("usage: python -m shared.data.needed PAPER [PRESET]")


if __name__ == "__main__":
    errors.run(main)
