"""Draw the golden losses again after an intended change: `python -m tests.papers.sst.golden`."""

from pathlib import Path

from shared.data.batches import seed_step
from shared.files import read_json, write_json
from tests.papers.sst import tiny

FILE = Path(__file__).parent / "golden_losses.json"
ARMS: dict[str, dict] = {
    "tree": {"structure": "tree"},
    "top_k": {"structure": "top_k"},
    "independent": {"structure": "independent"},
    "reinforce": {"structure": "tree", "gradient": "reinforce", "samples": 2},
    "nvil": {"structure": "tree", "gradient": "nvil"},
}


def losses(name: str) -> list[float]:
    """The first ten training losses of the small networks on a few layouts, seed 0."""
    arm = dict(ARMS[name])
    run = tiny.trainer(arm.pop("structure"), arm=arm)
    result = []
    for k in range(tiny.STEPS):
        seed_step(0, k)
        result.append(float(run.step(k)["loss"]))
    return result


if __name__ == "__main__":
    tolerance = read_json(FILE)["relative_tolerance"] if FILE.exists() else 0.02
    drawn = {name: [round(value, 4) for value in losses(name)] for name in ARMS}
    write_json(FILE, {"relative_tolerance": tolerance, "losses": drawn})
