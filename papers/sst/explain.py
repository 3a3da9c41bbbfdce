"""Learning to explain with subsets of words, stage `explain`: `python -m papers.sst.explain --preset laptop`.

Every arm is trained for every seed on three sets of texts: sequences with a planted span that alone decides the rating,
graded sentences, and movie reviews. Arms of one seed see the same texts in the same order, so differences are paired.
Writes `metrics.json` and, for the pictures, `examples.json`. Words of movie reviews, which may not be passed on with
this project, go into `papers/sst/pictures`, which is not in git.
"""

import argparse
import gzip
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from papers.sst import settings as sst_settings
from papers.sst.explain_arms import RELAXATIONS, Arm, Selection, Selector
from papers.sst.explain_training import Task, TaskName, Trainer, evaluate, explain, load_task
from papers.sst.reviews import planted_scores
from papers.sst.settings import PARAMS, Settings
from shared import errors, provenance
from shared.errors import UserError
from shared.files import write_bytes, write_json
from shared.paths import paper, runs
from shared.provenance import code_sha256
from shared.results import Metrics, put, write_metrics
from shared.settings import read_yaml
from shared.training.checkpoint import StateFolder, digest, discard
from shared.training.device import digest_of_device, pick_device
from shared.training.jobs import parallel, remembered
from shared.training.loop import Divergence, fit

#: Temperature and Adam's largest learning rate of each relaxation, chosen from one grid on validation texts of the
#: planted task at k = 10; see README.md for what was tried.
CHOSEN: dict[Selector, dict[Selection, tuple[float, float]]] = {
    "simple": {
        "l2x": (0.5, 1e-2),
        "softsub": (2.0, 1e-2),
        "euclidean": (2.0, 1e-2),
        "categorical": (2.0, 1e-2),
        "binary": (1.0, 1e-2),
        "marginals": (1.0, 1e-2),
        "correlated": (2.0, 1e-2),
    },
    "complex": {
        "l2x": (0.5, 5e-3),
        "softsub": (2.0, 5e-3),
        "euclidean": (2.0, 2.5e-3),
        "categorical": (2.0, 5e-3),
        "binary": (1.0, 5e-3),
        "marginals": (1.0, 5e-3),
        "correlated": (2.0, 2.5e-3),
    },
}
#: Of real texts, where words are selected, and of arms without a selector.
LEARNING_RATE_OF_TEXTS, LEARNING_RATE_OF_REFERENCES = 3e-3, 1e-2
#: Numbers of words to select; complex selectors are trained at PLANTED_COMPLEX_KS alone.
KS: dict[TaskName, tuple[int, ...]] = {"planted": (5, 10, 15), "sentences": (5,), "movies": (10,)}
PLANTED_COMPLEX_KS = (10,)
MOVIE_RELAXATIONS: tuple[Selection, ...] = ("l2x", "softsub", "marginals", "correlated")
#: Of the errors in a row, far above the largest.
LOSS_BOUND = 10.0
#: How many texts are shown, of how many words.
EXAMPLES = 4
EXAMPLE_WORDS: dict[TaskName, tuple[int, int]] = {"planted": (100, 100), "sentences": (12, 18), "movies": (60, 120)}


class Key(NamedTuple):
    """One training."""

    task: TaskName
    k: int
    arm: Arm
    seed: int


def arm(task: TaskName, selection: Selection, selector: Selector) -> Arm:
    """The arm with the settings that were chosen for it."""
    if selector == "none":
        return Arm(selection, learning_rate=LEARNING_RATE_OF_REFERENCES)
    temperature, rate = CHOSEN[selector][selection]
    return Arm(selection, selector, temperature, rate if task == "planted" else LEARNING_RATE_OF_TEXTS)


def plan(seeds: Sequence[int]) -> list[Key]:
    """All trainings, long ones first."""
    wanted: list[tuple[TaskName, int, Selection, Selector]] = []
    wanted += [("movies", k, each, "simple") for each in reversed(MOVIE_RELAXATIONS) for k in KS["movies"]]
    wanted += [("planted", k, each, "complex") for each in reversed(RELAXATIONS) for k in PLANTED_COMPLEX_KS]
    for each in reversed(RELAXATIONS):
        wanted += [("planted", k, each, "simple") for k in KS["planted"]]
        wanted += [("sentences", k, each, "simple") for k in KS["sentences"]]
    for task, ks in KS.items():
        wanted += [(task, k, "random_words", "none") for k in ks]
        wanted.append((task, ks[0], "all_words", "none"))  # their mean is the same for every k
    found = [(task, k, arm(task, selection, selector)) for task, k, selection, selector in wanted]
    return [Key(*one, seed) for one in found for seed in seeds]


def example_rows(task: Task) -> list[int]:
    """The first few test texts that fill a line or two, or the first of all where none does."""
    least, most = EXAMPLE_WORDS[task.name]
    lengths = task.test.lengths.tolist()
    fitting = [i for i, length in enumerate(lengths) if least <= length <= most]
    return (fitting or list(range(len(lengths))))[:EXAMPLES]


def one_run(settings: Settings, preset: str, code: str, key: Key) -> dict[str, Any]:
    """Train and measure one arm, once only: what was finished before is in its state folder.

    `code` is the hash of the code, taken once for all.
    """
    device = pick_device()
    task = load_task(key.task, sample=preset == "smoke")
    steps = dict(zip(("planted", "sentences", "movies"), settings.explain_steps, strict=True))[key.task]
    name = digest(
        code=code,
        texts=task.sha256(),
        k=key.k,
        arm=msgspec.to_builtins(key.arm),
        seed=key.seed,
        steps=steps,
        device=digest_of_device(device),
    )
    label = f"{key.task} k={key.k} {key.arm.name} seed {key.seed}"
    with StateFolder(f"sst-{preset}-explain-{key.task}-k{key.k}-{key.arm.name}-seed{key.seed}", name) as folder:

        def work() -> dict[str, Any]:
            trainer = Trainer(task, key.arm, key.k, key.seed, steps, device)
            try:
                record = fit(
                    trainer.step,
                    steps=steps,
                    seed=key.seed,
                    state=trainer.state(),
                    folder=folder,
                    guard=("loss", LOSS_BOUND),
                    check_every=20,
                    label=label,
                )
            except Divergence as error:
                raise UserError(f"{label} {error}; lower its learning rate in explain.py") from None
            trainer.restore_best()
            return {
                "numbers": evaluate(trainer.model, trainer.test, key.k),
                "mean_rating": mean_rating(task),
                "texts": example_texts(task),
                "explained": explain(trainer.model, trainer.test, key.k, example_rows(task)),
                "interruptions": record.interruptions,
            }

        return {**remembered(folder, work), "folder": str(folder.folder)}


def mean_rating(task: Task) -> dict[str, float]:
    """The numbers of the prediction that says the mean training rating of every text."""
    mean = task.train.ratings.mean()
    numbers = {"mse_x100": 100 * float((task.test.ratings - mean).square().mean())}
    if task.name == "movies":
        numbers["accuracy"] = 100 * float(((mean > 0.5) == (task.test.ratings > 0.5)).float().mean())
    return numbers


def example_texts(task: Task) -> list[dict[str, Any]]:
    """The test texts that are shown: `words` and `rating`.

    Of planted sequences `span`, the first position and the one behind the last, and `scores`, what each word would add
    inside it, too.
    """
    found: list[dict[str, Any]] = []
    for row in example_rows(task):
        text: dict[str, Any] = {"words": task.test.words(row), "rating": round(float(task.test.ratings[row]), 4)}
        if task.test.spans is not None:
            inside = task.test.spans[row].nonzero().flatten().tolist()
            text["span"] = [inside[0], inside[-1] + 1]
            text["scores"] = [round(score, 3) for score in planted_scores()[task.test.tokens[row]].tolist()]
        found.append(text)
    return found


def summary(keys: Sequence[Key], results: Sequence[dict[str, Any]]) -> Metrics:
    """metric -> arm -> seed -> value, all of the test texts; `mean_rating` learns nothing and is exact."""
    metrics: Metrics = {}
    for key, result in zip(keys, results, strict=True):
        for k in KS[key.task] if key.arm.selection == "all_words" else (key.k,):
            for name, value in result["numbers"].items():
                put(metrics, f"{key.task}_k{k}_{name}", key.arm.name, f"seed{key.seed}", value)
            for name, value in result["mean_rating"].items():
                put(metrics, f"{key.task}_k{k}_{name}", "mean_rating", "exact", value)
    return metrics


def shown(task: TaskName, k: int, keys: Sequence[Key], results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A few test texts (`example_texts`) with what the arms of the first seed made of them, for the pictures.

    Each item has `arms`: name -> `predicted`, and `selected`, the positions of the words.
    """
    chosen = [
        (key.arm.name, result)
        for key, result in zip(keys, results, strict=True)
        if (key.task, key.k, key.seed) == (task, k, keys[0].seed) and key.arm.selector != "none"
    ]
    items = [
        {**text, "arms": {name: result["explained"][i] for name, result in chosen}}
        for i, text in enumerate(chosen[0][1]["texts"])
    ]
    return {"k": k, "items": items}


def main() -> None:
    """Parse, run every arm for every seed, write, and only then forget the states."""
    parser = argparse.ArgumentParser(description="Learn which words explain a rating.")
    parser.add_argument("--preset", required=True, help="block of papers/sst/params.yaml")
    preset = parser.parse_args().preset
    settings = sst_settings.load(preset)
    origin = provenance.begin("explain", preset, None, Path(__file__))
    sample = preset == "smoke"
    seeds = read_yaml(PARAMS)["seeds"]
    keys = plan(seeds[:1] if sample else seeds)
    results = parallel(partial(one_run, settings, preset, code_sha256(Path(__file__))), keys)
    folder = runs("sst", preset)
    examples = {"planted": shown("planted", 10, keys, results), "sentences": shown("sentences", 5, keys, results)}
    write_json(folder / "explain" / "examples.json", examples)
    movies = json.dumps(shown("movies", 10, keys, results)).encode()
    write_bytes(paper("sst") / "pictures" / preset / "movies.json.gz", gzip.compress(movies, mtime=0))
    write_metrics(folder / "explain" / "metrics.json", summary(keys, results))
    origin.finish(folder / "provenance" / "explain.json", sum(result["interruptions"] for result in results))
    for result in results:
        discard(Path(result["folder"]))


if __name__ == "__main__":
    errors.run(main)
