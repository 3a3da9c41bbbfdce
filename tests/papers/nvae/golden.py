"""Draw the ten golden losses again after an intended change: `python -m tests.papers.nvae.golden`."""

from pathlib import Path

from shared.data.batches import seed_step
from shared.files import read_json, write_json
from tests.papers.nvae import tiny

FILE = Path(__file__).parent / "golden_losses.json"
STEPS = 10


def losses() -> list[float]:
    """The first ten training losses of the tiny model on the sample of MNIST, seed 0, float32."""
    run = tiny.trainer(steps=STEPS)
    result = []
    for k in range(STEPS):
        seed_step(0, k)
        result.append(float(run.step(k)["loss"]))
    return result


if __name__ == "__main__":
    tolerance = read_json(FILE)["relative_tolerance"] if FILE.exists() else 1e-3
    write_json(FILE, {"relative_tolerance": tolerance, "losses": [round(value, 4) for value in losses()]})
