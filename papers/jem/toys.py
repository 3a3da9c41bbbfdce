"""Joint models of two-dimensional laws, stage `toys`: `python -m papers.jem.toys --preset laptop`.

What images do not allow is exact here: likelihoods, KL(data || model) and gradients (Grathwohl et al., 2020, sections 3
and 4). The same networks on four laws, and on the first of them samplers without a buffer and without enough noise;
angles between estimated and exact gradients; trainings with a step that is too long; chains on quadratic energies.
Everything is done for every seed, on the CPU. Writes `metrics.json` and the rows of the figures beside it:

- `training.csv`: arm (its place in `ARMS`), seed, step, contrast, nll_nats, kl_nats, step_times_curvature
- `divergence.csv`: alpha, seed, step and the same columns
- `angles.csv`: seed, length, and cosine and relative error of each sampler and start
- `variances.csv`: seed, a, measured variance and its law, for two samplers; `variance_course.csv`: step and each a
- `densities.csv`, `samples.csv`: of the first seed, densities at the points of a grid, and states of the buffers
"""

import argparse
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from papers.jem import settings as jem_settings
from papers.jem.energy import Network, log_marginal
from papers.jem.settings import PARAMS, Settings
from papers.jem.sgld import Langevin
from papers.jem.toy import LAWS, Mixture, log_partition, square_grid, train_toy
from papers.jem.toy_studies import (
    SIDE,
    angle_rows,
    chain_variances,
    class_kl,
    divergence_summary,
    finite_rows,
    loss_against_likelihood,
    measure_model,
    sample_class_shares,
    shifted,
    train_classifier,
    variance_law,
)
from shared import errors, provenance
from shared.paths import runs
from shared.provenance import code_sha256
from shared.results import Metrics, put, write_metrics, write_rows
from shared.settings import read_yaml
from shared.training.checkpoint import StateFolder, digest, discard
from shared.training.device import digest_of_device
from shared.training.jobs import parallel, remembered

ALPHA = 0.01
#: Noise matched to the step; and the temperature 5e-5 that the paper's alpha = 1 and sigma = 0.01 have.
MATCHED = Langevin(10, ALPHA, None)
COLD = Langevin(10, ALPHA, 0.01 * math.sqrt(ALPHA))
BATCH, WIDTH, LEARNING_RATE = 128, 64, 1e-3
ROWS = 40  # of the record of a training
#: Trainings that break: a small net, a fast optimiser, and a step that is too long for the last of them only.
BREAKING_RATE, BREAKING_WIDTH, BREAKING_ALPHAS = 3e-3, 48, (0.02, 0.05)
CHAIN_LENGTHS = (1, 2, 5, 10, 20, 50, 100, 200)
#: a = alpha * curvature: those that settle, and those that do not.
SETTLING, UNSETTLED = (0.05, 0.1, 0.5, 1.0, 1.5, 1.8, 1.95), (2.0, 2.05, 2.2)
SETTLING_STEPS, SETTLING_EVERY = 400, 20
#: Of the pictures.
PICTURE_SIDE, PICTURE_HALF_WIDTH, PICTURE_SAMPLES = 50, 3.0, 400
Rows = list[dict[str, float]]


class Arm(NamedTuple):
    """A law and a sampler."""

    law: str
    langevin: Langevin = MATCHED
    reinit: float = 0.05


#: The order is that of the numbers in `training.csv`.
ARMS = {name: Arm(name) for name in LAWS} | {
    "eight_gaussians_no_buffer": Arm("eight_gaussians", reinit=1.0),
    "eight_gaussians_cold": Arm("eight_gaussians", COLD),
}


class Key(NamedTuple):
    """One job: `name` is an arm, a law, or a step size."""

    kind: str
    name: str
    seed: int


def density_picture(network: Network) -> list[float]:
    """exp LSE f / Z at the points of the pictures' grid."""
    with torch.no_grad():
        points = square_grid(PICTURE_SIDE, PICTURE_HALF_WIDTH).points
        log_p = log_marginal(network(points)) - log_partition(network, square_grid(SIDE))
    return [round(value, 4) for value in log_p.exp().tolist()]


def sample_columns(name: str, samples: Tensor) -> dict[str, list[float]]:
    """Two columns of the picture of samples (N, 2)."""
    chosen = samples[:PICTURE_SAMPLES]
    return {f"{name}_x{i + 1}": [round(value, 3) for value in chosen[:, i].tolist()] for i in range(2)}


def train_arm(s: Settings, name: str, seed: int, pictured: bool) -> dict[str, Any]:
    """Train one arm, and a classifier of the same law, and measure them."""
    arm = ARMS[name]
    law: Mixture = LAWS[arm.law]()
    sizes = {"batch": BATCH, "width": WIDTH, "seed": seed}
    every = max(10, s.toy_steps // ROWS)
    toy = train_toy(
        law,
        arm.langevin,
        steps=s.toy_steps,
        reinit=arm.reinit,
        record_every=every,
        learning_rate=LEARNING_RATE,
        **sizes,
    )
    rows = finite_rows(toy.rows)
    numbers = {name: measure_model(law, toy.model, seed) | loss_against_likelihood(rows)}
    numbers[name]["buffer_class_kl_nats"] = class_kl(sample_class_shares(toy.model, toy.buffer.states))
    numbers[name]["largest_step_times_curvature"] = max(row["step_times_curvature"] for row in rows)
    pictures, samples = {f"model_{name}": density_picture(toy.model)}, sample_columns(name, toy.buffer.states)
    if name == arm.law:
        plain = train_classifier(law, steps=-(-s.toy_steps // 4), learning_rate=LEARNING_RATE, **sizes)
        numbers[f"{name}_classifier"] = measure_model(law, plain, seed)
        pictures |= {f"true_{name}": density_picture(law.log_joint), f"classifier_{name}": density_picture(plain)}
        pictures[f"shifted_{name}"] = density_picture(shifted(toy.model))
        samples |= sample_columns(f"true_{name}", law.draw(PICTURE_SAMPLES)[0])
    place = {"arm": list(ARMS).index(name), "seed": seed}
    shown = {"densities": pictures, "samples": samples} if pictured else {}
    return {"numbers": numbers, "training": [{**place, **row} for row in rows], **shown}


def measure_angles(s: Settings, name: str, seed: int) -> dict[str, Any]:
    """Gradients early in a training, while the exact one is much larger than its noise."""
    law = LAWS[name]()
    steps = -(-s.toy_steps // 8)
    toy = train_toy(law, MATCHED, steps=steps, batch=BATCH, width=WIDTH, seed=seed, record_every=steps)
    samplers = {"matched": MATCHED, "cold": COLD}
    rows = angle_rows(toy, law, samplers, CHAIN_LENGTHS, chains=-(-3 * s.toy_steps // 2), seed=seed)
    numbers: dict[str, dict[str, float]] = {}
    for column in rows[0]:
        for what in ("cosine", "relative_error"):
            arm = column.removeprefix(f"{what}_")
            if arm != column:
                values = {f"{what}_l{row['length']}": row[column] for row in rows}
                numbers.setdefault(f"{name}_{arm}", {}).update(values)
    return {"numbers": numbers, f"angles_{name}": rows}


def break_training(s: Settings, name: str, seed: int) -> dict[str, Any]:
    """A training with the step size `name`, looked at often."""
    steps = -(-3 * s.toy_steps // 10)
    toy = train_toy(
        LAWS["eight_gaussians"](),
        Langevin(10, float(name), None),
        steps=steps,
        batch=BATCH,
        buffer_size=1000,
        learning_rate=BREAKING_RATE,
        width=BREAKING_WIDTH,
        seed=seed,
        record_every=10,
    )
    rows = finite_rows(toy.rows)
    numbers = {f"alpha{name.replace('.', '_')}": divergence_summary(rows)}
    return {"numbers": numbers, "divergence": [{"alpha": float(name), "seed": seed, **row} for row in rows]}


def measure_variances(s: Settings, seed: int) -> dict[str, Any]:
    """Chains on quadratic energies: the paper's sampler, and one with matched noise, against the exact law."""
    products, chains = (*SETTLING, *UNSETTLED), 10 * s.toy_steps
    course = chain_variances(Langevin(SETTLING_STEPS), products, chains=chains, seed=seed, every=SETTLING_EVERY)
    matched = Langevin(SETTLING_STEPS, 0.1, None)
    second = chain_variances(matched, SETTLING, chains=chains, seed=seed + 1000, every=SETTLING_STEPS)
    numbers: dict[str, dict[str, float]] = {}
    rows: Rows = []
    for a in products:
        arm = f"a{a:g}"
        measured, before = course[-1][arm], course[-2][arm]
        law = variance_law(Langevin(step_size=a, noise=1.0), 1.0, 1.0, SETTLING_STEPS)
        number = {"variance_over_law": measured / law}
        number["variance_growth_per_step"] = (measured / before) ** (1 / SETTLING_EVERY)
        if a in SETTLING:
            number["stationary_variance"] = measured
            # sigma^2 = 2 alpha, and the target's variance is 1 / curvature = alpha / a.
            number["matched_variance_over_target"] = 2 * a * second[-1][arm]
            rows.append({"seed": seed, "a": a, "variance": measured, "variance_law": 1 / (a * (2 - a))})
            rows[-1] |= {"matched_over_target": 2 * a * second[-1][arm], "matched_over_target_law": 2 / (2 - a)}
        numbers[arm.replace(".", "_")] = number
    return {"numbers": numbers, "variances": rows, "variance_course": course}


def plan(seeds: Sequence[int]) -> list[Key]:
    """All jobs, long ones first."""
    wanted = [("arm", name) for name in ARMS]
    wanted += [("angles", name) for name in ("eight_gaussians", "rings")]
    wanted += [("divergence", f"{alpha:g}") for alpha in BREAKING_ALPHAS] + [("variances", "quadratic")]
    return [Key(kind, name, seed) for kind, name in wanted for seed in seeds]


def one_job(s: Settings, preset: str, code: str, first_seed: int, key: Key) -> dict[str, Any]:
    """Measure, or take what was measured before a stop from the state folder."""
    pictured = key.seed == first_seed
    device = digest_of_device(torch.device("cpu"))
    name = digest(code=code, key=list(key), steps=s.toy_steps, pictured=pictured, device=device)
    with StateFolder(f"jem-{preset}-toys-{key.kind}-{key.name}-seed{key.seed}", name) as folder:

        def work() -> dict[str, Any]:
            if key.kind == "arm":
                return train_arm(s, key.name, key.seed, pictured)
            if key.kind == "angles":
                return measure_angles(s, key.name, key.seed)
            if key.kind == "divergence":
                return break_training(s, key.name, key.seed)
            return measure_variances(s, key.seed)

        return {**remembered(folder, work), "folder": str(folder.folder)}


def put_all(metrics: Metrics, key: Key, numbers: dict[str, dict[str, float]]) -> None:
    """The numbers of one job; what is not finite, as of a broken model, is left out."""
    prefix = {"arm": "toy", "angles": "angle", "divergence": "broken", "variances": "chain"}[key.kind]
    for arm, values in numbers.items():
        for metric, value in values.items():
            if math.isfinite(value):
                put(metrics, f"{prefix}_{metric}", arm, f"seed{key.seed}", value)


def put_exact(metrics: Metrics) -> None:
    """What needs no sample."""
    grid = square_grid(SIDE)
    for name, law in LAWS.items():
        log_p = law().log_density(grid.points).double()
        entropy = float(-((log_p + grid.log_area).exp() * log_p).sum())
        put(metrics, "toy_entropy_nats", name, "exact", entropy)
    for a in (*SETTLING, *UNSETTLED):
        arm = f"a{a:g}".replace(".", "_")
        unit = Langevin(step_size=a, noise=1.0)
        last, before = (variance_law(unit, 1.0, 1.0, SETTLING_STEPS - back) for back in (0, SETTLING_EVERY))
        put(metrics, "chain_variance_growth_per_step_law", arm, "exact", (last / before) ** (1 / SETTLING_EVERY))
        if a in SETTLING:
            put(metrics, "chain_stationary_variance_law", arm, "exact", 1 / (a * (2 - a)))
            put(metrics, "chain_matched_variance_over_target_law", arm, "exact", 2 / (2 - a))


def write(folder: Path, keys: list[Key], results: list[dict[str, Any]]) -> None:
    """Metrics and rows."""
    metrics: Metrics = {}
    tables: dict[str, Rows] = {}
    columns: dict[str, dict[str, list[float]]] = {"densities": {}, "samples": {}}
    for key, result in zip(keys, results, strict=True):
        put_all(metrics, key, result["numbers"])
        for name in ("training", "divergence", "angles_eight_gaussians", "angles_rings", "variances"):
            tables.setdefault(name, []).extend(result.get(name, []))
        for name, found in columns.items():
            found |= result.get(name, {})
    tables["variance_course"] = next((r["variance_course"] for r in results if "variance_course" in r), [])
    points = square_grid(PICTURE_SIDE, PICTURE_HALF_WIDTH).points
    columns["densities"] = {"x1": points[:, 0].tolist(), "x2": points[:, 1].tolist()} | columns["densities"]
    for name, found in columns.items():
        tables[name] = [dict(zip(found, values, strict=True)) for values in zip(*found.values(), strict=True)]
    put_exact(metrics)
    for name, rows in tables.items():
        write_rows(folder / f"{name}.csv", rows)
    write_metrics(folder / "metrics.json", metrics)


def main() -> None:
    """Parse, do every job for every seed, write, and only then forget the states."""
    parser = argparse.ArgumentParser(description="Train and measure joint models of two-dimensional laws.")
    parser.add_argument("--preset", required=True, help="block of papers/jem/params.yaml")
    preset = parser.parse_args().preset
    settings = jem_settings.load(preset)
    seeds = read_yaml(PARAMS)["seeds"]
    origin = provenance.begin("toys", preset, None, Path(__file__))
    keys = plan(seeds)
    results = parallel(partial(one_job, settings, preset, code_sha256(Path(__file__)), seeds[0]), keys)
    write(runs("jem", preset) / "toys", keys, results)
    origin.finish(runs("jem", preset) / "provenance" / "toys.json")
    for result in results:
        discard(Path(result["folder"]))


if __name__ == "__main__":
    errors.run(main)
