"""Where things lie in the checkout."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "data"

#: The nine papers in the order of the seminar.
PAPERS = (
    "jem",
    "sst",
    "perturbed_optimizers",
    "igpt",
    "gan_latent_directions",
    "hessian_penalty",
    "parallel_wavenet",
    "nvae",
    "gan_dissection",
)


def paper(name: str) -> Path:
    """The folder of one paper: `papers/<name>`."""
    return ROOT / "papers" / name


def runs(name: str, preset: str) -> Path:
    """What the stages of one paper write at one preset: `papers/<name>/runs/<preset>`."""
    return paper(name) / "runs" / preset


def weights(name: str, preset: str, seed: int) -> Path:
    """The trained weights of one seed, kept apart from `runs`: they are in DVC's cache, and `runs` is in git."""
    return paper(name) / "weights" / preset / f"seed{seed}.pt"


def reports(name: str) -> Path:
    """The generated report of one paper: `reports/<name>`."""
    return ROOT / "reports" / name
