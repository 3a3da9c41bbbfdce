"""Draw the golden losses again after an intended change: `python -m tests.papers.perturbed_optimizers.golden`."""

from pathlib import Path

from shared.data.batches import seed_step
from shared.files import read_json, write_json
from tests.papers.perturbed_optimizers import tiny

FILE = Path(__file__).parent / "golden_losses.json"
STEPS = 10
LOSSES = ("fenchel_young", "black_box", "squared", "direct")


def losses(name: str) -> list[float]:
    """The first ten training losses of the small network on the tiny maps, seed 0."""
    run = tiny.trainer(name, terrain_epochs=STEPS // 2, terrain_learning_rate=3e-3)
    result = []
    for k in range(STEPS):
        seed_step(0, k)
        result.append(float(run.step(k)["loss"]))
    return result


if __name__ == "__main__":
    tolerance = read_json(FILE)["relative_tolerance"] if FILE.exists() else 0.02
    drawn = {name: [round(value, 4) for value in losses(name)] for name in LOSSES}
    write_json(FILE, {"relative_tolerance": tolerance, "losses": drawn})
