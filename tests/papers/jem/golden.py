"""Draw the golden losses again after an intended change: `python -m tests.papers.jem.golden`."""

from pathlib import Path

from shared.data.batches import seed_step
from shared.files import read_json, write_json
from tests.papers.jem import tiny

FILE = Path(__file__).parent / "golden_losses.json"
STEPS = 10
ARMS: dict[str, dict] = {
    "jem": {},
    "classifier": {"generative_weight": 0.0},
    "conditional": {"factorisation": "conditional"},
}


def losses(name: str) -> list[float]:
    """The first ten losses of the small network on the sample, seed 0."""
    run = tiny.trainer(arm=ARMS[name], steps=STEPS)
    result = []
    for k in range(STEPS):
        seed_step(0, k)
        result.append(float(run.step(k)["loss"]))
    return result


if __name__ == "__main__":
    tolerance = read_json(FILE)["relative_tolerance"] if FILE.exists() else 0.02
    drawn = {name: [round(value, 4) for value in losses(name)] for name in ARMS}
    write_json(FILE, {"relative_tolerance": tolerance, "absolute_tolerance": 0.02, "losses": drawn})
