"""Parsers of ListOps, stage `parse`: `python -m papers.sst.parse --preset laptop` (Paulus et al., 2020, section 8.2).

Trains every arm for every seed. Arms of one seed see the same examples in the same order and begin with the same
weights. Writes `metrics.json`, all in percent but the seconds, a curve on validation examples for every run, and
`examples.json`: short test expressions with their true and inferred edges, of the first seed.
"""

import argparse
import functools
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from papers.sst import settings as sst_settings
from papers.sst.listops import VOCABULARY, Examples, Split, examples
from papers.sst.listops_training import ARMS, Trainer, limits, measure, target_edges, to_device
from papers.sst.settings import PARAMS, Settings
from shared import errors, provenance
from shared.errors import UserError
from shared.files import write_json
from shared.paths import runs
from shared.provenance import code_sha256
from shared.results import Metrics, put, write_metrics, write_rows
from shared.settings import read_yaml
from shared.training.checkpoint import StateFolder, digest, discard
from shared.training.device import digest_of_device, pick_device
from shared.training.jobs import parallel, remembered
from shared.training.loop import Divergence, Record, fit

VALIDATION, TEST = 2_000, 5_000  # examples, unless there are few to train on
CURVE_EXAMPLES = 1_000
CURVE_POINTS = 10
LOSS_BOUND = 1e3  # nats; chance is log 10 = 2.3
#: What `examples.json` holds: the arms, and one nested expression of each of these lengths.
SHOWN = ("gold", "arborescence", "spanning_tree")
SHOWN_TOKENS = (8, 10, 12, 14)

Key = tuple[str, int]


@functools.cache
def draw(split: Split, count: int, longest: int) -> Examples:
    """Examples of a split, drawn once a process; they are the same for every seed of the training."""
    return examples(split, count, limits=limits(longest))


def build(s: Settings, name: str, seed: int, device: torch.device) -> Trainer:
    """The trainer of one arm and seed."""
    validation = draw("validation", min(VALIDATION, max(1, s.listops_examples // 5)), s.listops_longest)
    return Trainer(
        ARMS[name],
        draw("train", s.listops_examples, s.listops_longest),
        validation.take(torch.arange(min(CURVE_EXAMPLES, len(validation)))),
        steps=s.listops_steps,
        rounds=limits(s.listops_longest).deepest,
        seed=seed,
        device=device,
        curve_every=-(-s.listops_steps // CURVE_POINTS),
    )


def train(trainer: Trainer, folder: StateFolder, label: str, save_seconds: float = 20.0) -> Record:
    """Run the shared loop to its end; a row of the record for each point of the curve.

    Raises:
        UserError: the loss passed its bound or is not finite.
    """
    try:
        return fit(
            trainer.step,
            steps=trainer.steps,
            seed=trainer.seed,
            state=trainer.state(),
            folder=folder,
            guard=("loss", LOSS_BOUND),
            record_every=trainer.curve_every,
            check_every=20,
            save_seconds=save_seconds,
            label=label,
        )
    except Divergence as error:
        raise UserError(f"{label} {error}; lower the learning rate of that arm in listops_training.py") from None


def final_numbers(trainer: Trainer, s: Settings) -> dict[str, float]:
    """Metric, without `listops_`, -> percent: of a hard sample, a relaxed one, and the structure without noise."""
    parser = trainer.parser
    test = draw("test", min(TEST, max(1, s.listops_examples // 4)), s.listops_longest)
    validation = draw("validation", min(VALIDATION, max(1, s.listops_examples // 5)), s.listops_longest)
    numbers = measure(parser, test, "hard")
    numbers |= {f"validation_{name}": value for name, value in measure(parser, validation, "hard").items()}
    if trainer.arm.latent:
        numbers |= {f"map_{name}": value for name, value in measure(parser, test, "map").items()}
        numbers |= {f"relaxed_{name}": value for name, value in measure(parser, test, "relaxed").items()}
    return numbers


def curve(trainer: Trainer, record: Record) -> list[dict[str, float]]:
    """Rows of step, mean training loss in nats since the row before, and the validation numbers in percent."""
    return [
        {"step": int(row["step"]), "loss_nats": row["loss"], "skipped_share": row["skipped"]}
        | {f"validation_{name}": value for name, value in point.items() if name != "step"}
        for row, point in zip(record.rows, trainer.curve.rows, strict=True)
    ]


def picked(test: Examples) -> Tensor:
    """The first nested expression of each length of `SHOWN_TOKENS` in the test set, as far as there is one."""
    operators = (test.tokens.long() >= VOCABULARY.index("[MIN")) & (test.tokens.long() < VOCABULARY.index("]"))
    nested = operators.sum(1) > 1
    found = [((test.lengths == length) & nested).nonzero().flatten()[:1] for length in SHOWN_TOKENS]
    return torch.cat(found)


@torch.no_grad()
def shown_examples(trainer: Trainer, test: Examples) -> list[dict[str, Any]]:
    """Of each picked expression its tokens, value, predicted value, and the true and inferred edges as pairs.

    Pairs are (parent, child), of undirected edges (smaller, larger); the edges are one hard sample.
    """
    chosen = picked(test)
    if not len(chosen):
        return []
    parser = trainer.parser
    batch = to_device(test.take(chosen), trainer.device)
    edges = parser.edges(batch, "hard", torch.Generator(trainer.device).manual_seed(0))
    predicted = parser.logits(batch, edges).argmax(1)
    undirected = trainer.arm.structure == "spanning_tree"
    gold, edges = (x.triu() if undirected else x for x in (target_edges(trainer.arm, batch.heads), edges))
    return [
        {
            "tokens": [VOCABULARY[token] for token in batch.tokens[i, : batch.lengths[i]].tolist()],
            "value": int(batch.labels[i]),
            "predicted": int(predicted[i]),
            "directed": not undirected,
            "gold": gold[i].nonzero().tolist(),
            "edges": edges[i].nonzero().tolist(),
        }
        for i in range(len(chosen))
    ]


def one_run(s: Settings, preset: str, first_seed: int, key: Key) -> dict[str, Any]:
    """Train and measure one arm for one seed, or take it from the state folder if it was finished before."""
    name, seed = key
    device = pick_device()
    ingredients = {"examples": s.listops_examples, "longest": s.listops_longest, "steps": s.listops_steps}
    code = code_sha256(Path(__file__))
    shows = seed == first_seed and name in SHOWN
    identity = digest(
        code=code, arm=name, seed=seed, shows=shows, device=digest_of_device(device), settings=ingredients
    )
    with StateFolder(f"sst-{preset}-parse-{name}-seed{seed}", identity) as folder:

        def work() -> dict[str, Any]:
            trainer = build(s, name, seed, device)
            record = train(trainer, folder, f"{name} seed {seed}")
            test = draw("test", min(TEST, max(1, s.listops_examples // 4)), s.listops_longest)
            return {
                "numbers": final_numbers(trainer, s) | {"train_seconds": round(record.seconds, 1)},
                "rows": curve(trainer, record),
                "examples": shown_examples(trainer, test) if shows else [],
                "interruptions": record.interruptions,
            }

        return {**remembered(folder, work), "folder": str(folder.folder)}


def write(preset: str, keys: list[Key], results: list[dict[str, Any]]) -> None:
    """Metrics, curves and examples."""
    target = runs("sst", preset) / "parse"
    metrics: Metrics = {}
    shown: dict[str, Any] = {}
    for (name, seed), result in zip(keys, results, strict=True):
        for metric, value in result["numbers"].items():
            put(metrics, f"listops_{metric}", name, f"seed{seed}", value)
        write_rows(target / f"curve-{name}-seed{seed}.csv", result["rows"])
        if result["examples"]:
            shown[name] = result["examples"]
    write_metrics(target / "metrics.json", metrics)
    write_json(target / "examples.json", shown)


def main() -> None:
    """Parse, run every arm for every seed, write, and only then forget the states."""
    parser = argparse.ArgumentParser(description="Train and compare parsers of ListOps.")
    parser.add_argument("--preset", required=True, help="block of papers/sst/params.yaml")
    preset = parser.parse_args().preset
    settings = sst_settings.load(preset)
    seeds = read_yaml(PARAMS)["seeds"]
    origin = provenance.begin("parse", preset, None, Path(__file__))
    # Those with an inferred tree are the longest; the LSTM, the shortest, comes last.
    keys = [(name, seed) for name in sorted(ARMS, key=lambda name: not ARMS[name].latent) for seed in seeds]
    keys.sort(key=lambda key: key[0] == "lstm")
    results = parallel(partial(one_run, settings, preset, seeds[0]), keys)
    write(preset, keys, results)
    origin.finish(runs("sst", preset) / "provenance" / "parse.json", sum(r["interruptions"] for r in results))
    for result in results:
        discard(Path(result["folder"]))


if __name__ == "__main__":
    errors.run(main)
