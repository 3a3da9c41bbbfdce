"""Test every trained image network, once: `python -m papers.jem.evaluate --preset laptop`.

What is tested is a view of an arm: its weights with the least validation NLL, or those of the end (`views`). Numbers go
into `runs/<preset>/evaluate/`, pictures of the first seed into `papers/jem/pictures/<preset>/`.
"""

import argparse
import functools
import hashlib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from papers.jem.data import Data, out_of_distribution_sets, scale
from papers.jem.evaluation import Found, classification, familiarity, together
from papers.jem.feature_distance import Features, load_features, reference_distances, sample_distances
from papers.jem.robustness import curve, distal, masking_checks, refinement
from papers.jem.sampling import chain_diagnostics, conditional_samples, samples
from papers.jem.settings import PARAMS, Settings
from papers.jem.sgld import Langevin
from papers.jem.train import data_of, load_network
from papers.jem.training import PRECISION, read_arm, to_plain
from shared import errors, provenance
from shared.files import write_bytes
from shared.paths import paper, runs
from shared.provenance import code_sha256
from shared.results import Metrics, put, write_metrics, write_rows
from shared.settings import read_yaml
from shared.training.checkpoint import StateFolder, digest, discard
from shared.training.device import digest_of_device, pick_device
from shared.training.jobs import parallel

#: Views of which everything is measured, and those that draw no samples though they could.
THOROUGH, BRIEF = ("jem", "classifier", "classifier_noiseless"), ("jem_last",)
#: Who judges images that generative networks made, and whose gradients attack them; and who does so for all others.
JUDGES = ("classifier", "jem")
#: Who judges the distal adversaries of all: a network that none of them is, of another seed, because arms of one seed
#: share their first weights, and adversaries of one fool the other.
REFEREE = "classifier_smoothed"
#: At most: images of each unfamiliar set, samples, samples of each class, chains that are traced. Where few images are
#: attacked there are fewer of these too.
OUTSIDE, SAMPLES, PER_CLASS, TRACED = 2_000, 400, 20, 50
#: At most: distal adversaries of each class, and their steps.
DISTAL, DISTAL_STEPS = 10, 200
#: The share of the attacked images for attacks in L2, and for refinement and checks.
L2_SHARE, STUDY_SHARE = 2, 5

#: View and seed.
Key = tuple[str, int]


def views(arms: Sequence[str], generative: Mapping[str, bool]) -> dict[str, tuple[str, str]]:
    """View -> arm and which of its weights, the costly ones first.

    A generative arm is seen at its least validation NLL, much as the paper keeps the weights of the best validation
    accuracy; a plain classifier at the end, fitted to its labels. `jem_last` and `classifier_early` are the other way
    round: stopping early alone mends part of what a classifier lacks.
    """
    found = {arm: (arm, "best" if generative[arm] else "last") for arm in arms}
    if "jem" in arms:
        found["jem_last"] = ("jem", "last")
    if "classifier" in arms:
        found["classifier_early"] = ("classifier", "best")

    def cost(view: str) -> int:
        return 2 * (view in THOROUGH) + 3 * (generative[found[view][0]] and view not in BRIEF)

    return {view: found[view] for view in sorted(found, key=cost, reverse=True)}


def attacks(
    network: nn.Module,
    s: Settings,
    data: Data,
    judge: nn.Module | None,
    referee: nn.Module | None,
    generative: bool,
    seed: int,
) -> Found:
    """L2 attacks, refinement, checks of the gradient, and distal adversaries, which the referee judges."""
    x, labels = scale(data.test[: s.attacked_images]), data.test_labels[: s.attacked_images]
    half, few = (slice(0, max(1, len(x) // share)) for share in (L2_SHARE, STUDY_SHARE))
    names = () if generative else ("jem0", "jem1", "jem1_full")
    plain = ("jem0", "jem1", "jem10")[: 3 if generative else 2]
    return together(
        curve(network, x[half], labels[half], "l2", s.attack_steps, seed),
        refinement(network, x[few], labels[few], s.attack_steps, seed, names),
        refinement(network, x[few], labels[few], s.attack_steps, seed, plain, "l2"),
        masking_checks(network, x[few], labels[few], s.attack_steps, judge if generative else None, seed),
        distal(
            network,
            max(1, min(DISTAL, len(x) // 10)),
            tuple(x.shape[1:]),
            steps=min(DISTAL_STEPS, 10 * s.attack_steps),
            train=data.train,
            judge=referee,
            device=x.device,
            seed=seed,
        ),
    )


def generation(
    network: nn.Module, s: Settings, data: Data, judge: nn.Module | None, features: Features, thorough: bool, seed: int
) -> Found:
    """Samples, how far they are from images, samples of each class, and diagnostics of chains."""
    langevin = Langevin(s.chain_steps)
    few = max(1, s.attacked_images // 10)  # of a preset that only proves that all this runs
    common: dict[str, Any] = {"rounds": s.sample_rounds, "langevin": langevin, "judge": judge, "seed": seed}
    common["precision"] = PRECISION
    found, x = samples(network, data, count=min(SAMPLES, 20 * few), **common)
    shape, per_class = tuple(x.shape[1:]), min(PER_CLASS, few)
    given = conditional_samples(network, shape, per_class=per_class, device=x.device, **common)
    compared: dict[str, Any] = {"network": features, "count": min(SAMPLES, 4 * few)}
    found = together(found, given, Found(sample_distances(x, data, **compared)))
    if not thorough:
        return found
    references = Found(reference_distances(data, data_noise=s.data_noise, seed=seed, **compared))
    traced = min(TRACED, 5 * few)
    at_rest = chain_diagnostics(network, data, x, langevin, data_noise=s.data_noise, count=traced, seed=seed)
    return together(found, references, at_rest)


def measure(
    network: nn.Module,
    s: Settings,
    data: Data,
    outside: Mapping[str, Tensor],
    *,
    features: Features | None,
    thorough: bool,
    judge: nn.Module | None,
    referee: nn.Module | None,
    seed: int,
) -> Found:
    """All that is measured of one network.

    Args:
        outside: unfamiliar sets, see `familiarity`.
        features: in which its samples are compared with images; None for a network that draws none.
        thorough: also the other attacks, and diagnostics of chains.
        judge: another network, for samples and transfer attacks.
        referee: a third one, for distal adversaries: the same for all that are compared.
        seed: of every random number.
    """
    x, labels = scale(data.test[: s.attacked_images]), data.test_labels[: s.attacked_images]
    parts = [
        classification(network, data, seed),
        familiarity(network, data, outside),
        curve(network, x, labels, "linf", s.attack_steps, seed),
    ]
    if thorough:
        parts.append(attacks(network, s, data, judge, referee, features is not None, seed))
    if features is not None:
        parts.append(generation(network, s, data, judge, features, thorough, seed))
    return together(*parts)


@functools.cache
def _features(device: torch.device, untrained: bool) -> Features:
    """One for all networks that a process tests: it remembers what it found of test images."""
    return load_features(device, untrained=untrained)


def weights_sha256(network: nn.Module) -> str:
    """A name for the weights of a network, in hexadecimal."""
    content = hashlib.sha256()
    for value in network.state_dict().values():
        content.update(value.cpu().contiguous().numpy().tobytes())
    return content.hexdigest()


def another(seed: int) -> int:
    """The seed after this one in params.yaml, the first after the last."""
    seeds: list[int] = read_yaml(PARAMS)["seeds"]
    return seeds[(seeds.index(seed) + 1) % len(seeds)]


def test_one(preset: str, seen: Mapping[str, tuple[str, str]], key: Key) -> str:
    """Measure one network; the state folder that holds what was found."""
    view, seed = key
    name, kind = seen[view]
    arm, s = read_arm(preset, name)
    generative = arm.generative_weight > 0
    network = load_network(preset, name, seed, kind)
    judge_view = JUDGES[0] if generative else JUDGES[1]
    judge, referee = (
        load_network(preset, seen[other][0], of_seed, seen[other][1]) if other in seen else None
        for other, of_seed in ((judge_view, seed), (REFEREE, another(seed)))
    )
    device, data = pick_device(), data_of(s, seed, preset)
    hashes = [weights_sha256(each) for each in (network, judge, referee) if each is not None]
    where = {"device": digest_of_device(device), "data": data.sha256(), "weights": hashes, "key": key}
    identity = digest(code=code_sha256(Path(__file__)), **where, **to_plain(s, arm))
    with StateFolder(f"jem-evaluate-{preset}-{view}-seed{seed}", identity) as folder:
        if not folder.file.exists():
            count = min(OUTSIDE, 2 * s.attacked_images)
            outside = out_of_distribution_sets(data.to(device), count, seed, sample=preset == "smoke")
            draws = generative and view not in BRIEF
            found = measure(
                network,
                s,
                data.to(device),
                outside,
                features=_features(device, preset == "smoke") if draws else None,
                thorough=view in THOROUGH,
                judge=judge,
                referee=referee,
                seed=seed,
            )
            folder.save(dict(vars(found)))
        return str(folder.folder)


def read(folder: str) -> Found:
    """What `test_one` left in a state folder."""
    state = torch.load(Path(folder) / "state.pt", map_location="cpu", weights_only=True)
    return Found(state["numbers"], state["tables"], state["pictures"])


def write(preset: str, results: Mapping[Key, Found], seeds: Sequence[int]) -> None:
    """`metrics.json`, `<view>/seed<k>/<table>.csv`, and of the first seed `pictures/<preset>/<view>.npz`."""
    metrics: Metrics = {}
    target = runs("jem", preset) / "evaluate"
    for (view, seed), found in results.items():
        for metric, value in found.numbers.items():
            put(metrics, metric, view, f"seed{seed}", value)
        for table, rows in found.tables.items():
            write_rows(target / view / f"seed{seed}" / f"{table}.csv", rows)
        if seed == seeds[0] and found.pictures:
            buffer = io.BytesIO()
            arrays = {label: images.numpy() for label, images in found.pictures.items()}
            np.savez_compressed(buffer, allow_pickle=False, **arrays)
            write_bytes(paper("jem") / "pictures" / preset / f"{view}.npz", buffer.getvalue())
    write_metrics(target / "metrics.json", metrics)


def main() -> None:
    """Measure all views of the arms, and the seeds, that params.yaml names; write."""
    parser = argparse.ArgumentParser(description="Test the trained image networks of a preset.")
    parser.add_argument("--preset", required=True, help="block of papers/jem/params.yaml")
    preset = parser.parse_args().preset
    document = read_yaml(PARAMS)
    arms, seeds = document["arms_to_run"], document["seeds"]
    origin = provenance.begin("evaluate", preset, None, Path(__file__))
    seen = views(arms, {arm: read_arm(preset, arm)[0].generative_weight > 0 for arm in arms})
    keys = [(view, seed) for view in seen for seed in seeds]
    folders = parallel(functools.partial(test_one, preset, seen), keys)
    write(preset, {key: read(folder) for key, folder in zip(keys, folders, strict=True)}, seeds)
    origin.finish(runs("jem", preset) / "provenance" / "evaluate.json")
    for folder in folders:
        discard(Path(folder))


if __name__ == "__main__":
    errors.run(main)
