"""Test every trained network, once: `python -m papers.jem.evaluate --preset laptop`.

A view is an arm at some of its weights: hybrid models are those with the least validation NLL, classifiers those of the
end, and the other choice of both is a view of its own. Numbers and tables go into `runs/<preset>/evaluate/`, pictures
of samples and of distal adversaries of the first seed into `pictures/<preset>/`.
"""

import argparse
import io
import itertools
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from papers.jem.data import CLASSES, Data, out_of_distribution_sets, scale
from papers.jem.evaluation import Found, classification, familiarity, together
from papers.jem.robustness import curves, distal, masking_checks, refinement
from papers.jem.sampling import chain_diagnostics, conditional_samples, samples
from papers.jem.settings import PARAMS, Settings
from papers.jem.settings import load as load_settings
from papers.jem.sgld import Langevin
from papers.jem.train import data_of, load_network
from papers.jem.training import PRECISION, read_arm
from shared import errors, provenance
from shared.files import write_bytes
from shared.paths import paper, runs
from shared.results import Metrics, put, write_metrics, write_rows
from shared.settings import read_yaml
from shared.training.jobs import parallel

#: View -> arm and which of its weights.
VIEWS = {
    "jem": ("jem", "best"),
    "jem_last": ("jem", "last"),
    "classifier": ("classifier", "last"),
    "classifier_early": ("classifier", "best"),
    "classifier_noiseless": ("classifier_noiseless", "last"),
    "classifier_smoothed": ("classifier_smoothed", "last"),
    "jem_short": ("jem_short", "best"),
    "jem_conditional": ("jem_conditional", "best"),
    "jem_labelled_only": ("jem_labelled_only", "best"),
    "jem_energy_l2": ("jem_energy_l2", "best"),
}
#: What is measured of every view, and besides of some.
EVERY = ("basic", "curves")
MORE = {"jem": ("refinement", "checks", "samples", "distal"), "classifier": ("checks", "distal")}
#: Whose gradient a transfer attack follows, and who gives a second opinion on samples.
SURROGATE = ("classifier", "last")
#: Images of each unfamiliar set; images under the costlier attacks, as a share of the others; samples; a class of them.
UNFAMILIAR, COSTLY_SHARE, SAMPLES, PER_CLASS = 2000, 0.25, 500, 20

#: Part, view, seed.
Key = tuple[str, str, int]


def attacked(s: Settings, data: Data, share: float = 1.0) -> tuple[Tensor, Tensor]:
    """The first test images, float32 in [-1, 1], and their labels."""
    count = max(1, round(s.attacked_images * share))
    return scale(data.test[:count]), data.test_labels[:count]


def generated(preset: str, view: str, seed: int, s: Settings, data: Data) -> Found:
    """Samples of a view, with and without a class, and the state of its chains."""
    network, judge = load_network(preset, VIEWS[view][0], seed, VIEWS[view][1]), load_network(preset, *_surrogate(seed))
    own = read_arm(preset, VIEWS[view][0])[1]
    langevin, common = Langevin(own.chain_steps), {"rounds": s.sample_rounds, "judge": judge, "precision": PRECISION}
    count = min(SAMPLES, s.buffer)
    found, x = samples(network, data, count=count, langevin=langevin, seed=seed, **common)  # type: ignore[arg-type]
    shape = tuple(data.test.shape[1:])
    of_class = conditional_samples(
        network, shape, per_class=min(PER_CLASS, s.buffer // CLASSES), langevin=langevin, seed=seed,
        device=data.test.device, **common,  # type: ignore[arg-type]
    )  # fmt: skip
    chains = chain_diagnostics(network, data, x, langevin, data_noise=own.data_noise, seed=seed)
    return together(found, of_class, chains)


def _surrogate(seed: int) -> tuple[str, int, str]:
    return SURROGATE[0], seed, SURROGATE[1]


def measured(preset: str, key: Key) -> Found:
    """One part of what is measured of a view and seed."""
    part, view, seed = key
    s = load_settings(preset)
    data = data_of(s, seed, preset)
    network = load_network(preset, VIEWS[view][0], seed, VIEWS[view][1])
    if part == "basic":
        outside = out_of_distribution_sets(data, UNFAMILIAR, 0, sample=preset == "smoke")
        return together(classification(network, data), familiarity(network, data, outside))
    if part == "curves":
        return curves(network, *attacked(s, data), s.attack_steps)
    if part == "refinement":
        return refinement(network, *attacked(s, data, COSTLY_SHARE), s.attack_steps)
    if part == "checks":
        other = load_network(preset, *_surrogate(seed)) if view != "classifier" else None
        return masking_checks(network, *attacked(s, data, COSTLY_SHARE), s.attack_steps, other)
    if part == "samples":
        return generated(preset, view, seed, s, data)
    judge = load_network(preset, *_surrogate(seed)) if view != "classifier" else None
    shape = tuple(data.test.shape[1:])
    return distal(network, 10, shape, train=data.train, judge=judge, seed=seed, device=data.test.device)


def one_job(preset: str, key: Key) -> dict[str, Any]:
    """`measured` as what can be sent between processes."""
    found = measured(preset, key)
    pictures = {name: images.numpy() for name, images in found.pictures.items()}
    return {"numbers": found.numbers, "tables": found.tables, "pictures": pictures}


def write_pictures(path: Path, pictures: dict[str, np.ndarray[Any, Any]]) -> None:
    """Images by name, uint8, as a compressed archive of arrays."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **pictures)
    write_bytes(path, buffer.getvalue())


def main() -> None:
    """Measure all views of the arms and seeds that params.yaml names; write."""
    parser = argparse.ArgumentParser(description="Test the trained networks of a preset.")
    parser.add_argument("--preset", required=True, help="block of papers/jem/params.yaml")
    preset = parser.parse_args().preset
    document = read_yaml(PARAMS)
    origin = provenance.begin("evaluate", preset, None, Path(__file__))
    views = [view for view, (arm, _) in VIEWS.items() if arm in document["arms_to_run"]]
    wanted = [(part, view) for view in views for part in (*EVERY, *MORE.get(view, ()))]
    longest = ("refinement", "samples", "checks", "curves", "distal", "basic")
    wanted.sort(key=lambda each: longest.index(each[0]))
    keys = [(part, view, seed) for (part, view), seed in itertools.product(wanted, document["seeds"])]
    metrics: Metrics = {}
    pictures: dict[str, dict[str, np.ndarray[Any, Any]]] = {}
    folder = runs("jem", preset) / "evaluate"
    torch.set_num_threads(1)
    for (_, view, seed), result in zip(keys, parallel(partial(one_job, preset), keys), strict=True):
        for metric, value in result["numbers"].items():
            put(metrics, metric.replace(".", "_"), view, f"seed{seed}", value)
        for name, rows in result["tables"].items():
            write_rows(folder / view / f"seed{seed}" / f"{name}.csv", rows)
        if seed == document["seeds"][0]:
            pictures.setdefault(view, {}).update(result["pictures"])
    for view, images in pictures.items():
        if images:
            write_pictures(paper("jem") / "pictures" / preset / f"{view}.npz", images)
    write_metrics(folder / "metrics.json", metrics)
    origin.finish(runs("jem", preset) / "provenance" / "evaluate.json")


if __name__ == "__main__":
    errors.run(main)
