"""Measure what the paper proves: `python -m papers.sst.theory --preset laptop`.

Writes `runs/<preset>/theory/metrics.json` and the curves of the figures beside it. Seeds are repeats with random
utilities of their own; what judges all repeats together, or is not random, is one exact number.
"""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from papers.sst import identities, laws, precision
from papers.sst import settings as paper_settings
from papers.sst.structures import Structure, gibbs_mean, structures, tree_structure
from papers.sst.utilities import Law
from shared import errors, provenance
from shared.paths import runs
from shared.provenance import code_sha256
from shared.results import Metrics, merge, put, write_metrics, write_rows
from shared.training.checkpoint import StateFolder, digest, discard
from shared.training.device import digest_of_device, pick_device
from shared.training.jobs import parallel, remembered

PAPER = "sst"
SEEDS = range(5)
#: Of the curve of limits.
TEMPERATURES = (10.0, 5.0, 2.0, 1.0, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01)
#: Of the example on four nodes.
EXAMPLE_TEMPERATURES = (2.0, 1.0, 0.5, 0.25, 0.1)
#: Largest differences of the utilities u / t where rounding is measured.
RANGES = (5, 10, 15, 20, 30, 40, 60, 80)
#: What looks at the order of the utilities alone, and what does not.
MATROIDS = ("categorical", "k_subsets", "spanning_trees")
OTHERS = ("matchings", "arborescences")
#: Of the utilities that the two kinds of structures tell apart.
LAWS: tuple[Law, ...] = ("gumbel", "negative_exponential")
#: Of the exponential clocks.
RATES = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
RACES = 20
Rows = dict[str, list[dict[str, float]]]


def named(value: float) -> str:
    """A number as part of a metric's name: 0.05 -> "0_05", 1.0 -> "1"."""
    return f"{value:g}".replace(".", "_")


def seeded(seed: int, stream: int) -> torch.Generator:
    """A generator for each repeat and each experiment."""
    return torch.Generator().manual_seed(1_000_003 * seed + stream)


def measure_identities(seed: int, samples: int, metrics: Metrics) -> Rows:
    """Limits, exactness, sums, derivatives and optimality of every structure at random utilities."""
    key, count = f"seed{seed}", max(10, samples // 500)
    rows: Rows = {
        name: [{"seed": seed, "temperature": t} for t in TEMPERATURES] for name in ("limit", "refused_percent")
    }
    for stream, structure in enumerate(structures()):
        generator = seeded(seed, stream)
        utilities = identities.draw_utilities(structure, count, generator)
        for t, distance, refused in zip(TEMPERATURES, rows["limit"], rows["refused_percent"]):
            mean, share = identities.limit_curve(structure, utilities, t)
            distance[structure.name], refused[structure.name] = mean, share
        for t, worst in identities.limit_distances(structure, utilities).items():
            put(metrics, f"limit_distance_t{named(t)}", structure.name, key, worst)
        if "gibbs" in structure.entropies:
            put(metrics, "exactness_error", structure.name, key, identities.exactness_error(structure, utilities))
        if len(structure.sums):
            put(metrics, "sum_error", structure.name, key, identities.sum_error(structure, utilities))
        error = identities.vjp_error(structure, utilities[: count // 5 + 1], generator)
        put(metrics, "vjp_error", structure.name, key, error)
        for entropy in structure.entropies:
            if entropy != "gibbs":
                gap = identities.optimality_gap(structure, utilities, entropy)
                put(metrics, "optimality_gap", structure.name, key, gap)
    theta = torch.randn(count, 5, generator=seeded(seed, 50), dtype=torch.float64)
    for arm, value in identities.gumbel_softmax_difference(theta, seeded(seed, 51)).items():
        put(metrics, "gumbel_softmax_difference", arm, key, value)
    return rows


def measure_example(seed: int, samples: int, metrics: Metrics) -> Rows:
    """The relaxed tree on four nodes as the temperature falls; nothing is random."""
    tree = tree_structure(4).solver(identities.K4)
    rows = []
    for t in EXAMPLE_TEMPERATURES:
        x = identities.best_tree_example(t)
        put(metrics, f"example_distance_t{named(t)}", "spanning_trees", "exact", (x - tree).abs().max().item())
        rows.append({"temperature": t, **{f"edge{i}": value for i, value in enumerate(x.tolist())}})
    return {"example": [*rows, {"temperature": 0.0, **{f"edge{i}": value for i, value in enumerate(tree.tolist())}}]}


def counted(name: str) -> tuple[Structure, Tensor]:
    """The structure whose maximisers are counted under this name, and fixed random parameters (n)."""
    found = {structure.name: structure for structure in structures()}
    structure = found["k_subsets_marginals" if name == "k_subsets" else name]
    generator = seeded(0, 60 + (*MATROIDS, *OTHERS).index(name))
    return structure, 0.7 * torch.randn(structure.vertices.shape[1], generator=generator, dtype=torch.float64)


def measure_law(name: str, seed: int, samples: int, metrics: Metrics) -> Rows:
    """Frequencies of maximisers against enumeration, and the two laws of utilities against each other."""
    structure, theta = counted(name)
    draws = max(2000, samples // 5)
    if name in MATROIDS:
        exact = laws.exact_law(structure, theta)
        for stream, law in enumerate(LAWS):
            p = laws.law_p(structure, theta, law, exact, draws, seeded(0, 70 + stream))
            put(metrics, f"{law}_law_p", name, "exact", p)
    p, distance = laws.same_law_p(structure, theta, draws, seeded(0, 72))
    put(metrics, "same_law_p", name, "exact", p)
    put(metrics, "same_law_distance", name, "exact", distance)
    for repeat in SEEDS:
        percent = laws.same_vertex(structure, theta, draws, seeded(repeat, 73))
        put(metrics, "same_vertex_percent", name, f"seed{repeat}", percent)
    return {}


def measure_trees(seed: int, samples: int, metrics: Metrics) -> Rows:
    """Trees that Kruskal's method makes of Gumbel utilities are neither uniform nor of the Gibbs law."""
    triangle, square = tree_structure(3), tree_structure(4)
    theta, equal = identities.K4[:3], torch.zeros(6, dtype=torch.float64)
    stars = square.vertices @ _incidence().T
    is_star = (stars.amax(-1) == 3).double()
    inclusion = laws.exact_law(triangle, theta) @ triangle.vertices
    gibbs = gibbs_mean(theta, triangle.vertices, 1.0)
    put(metrics, "star_percent", "enumerated", "exact", 100 * (laws.exact_law(square, equal) @ is_star).item())
    put(metrics, "star_percent", "uniform", "exact", 100 * is_star.mean().item())
    for i, edge in enumerate(("01", "02", "12")):
        put(metrics, f"inclusion_percent_{edge}", "enumerated", "exact", 100 * inclusion[i].item())
        put(metrics, f"inclusion_percent_{edge}", "gibbs", "exact", 100 * gibbs[i].item())
    for repeat in SEEDS:
        counts = laws.counts_of(square, equal, "gumbel", samples, seeded(repeat, 80)).double()
        put(metrics, "star_percent", "sampled", f"seed{repeat}", 100 * (counts @ is_star / samples).item())
        counts = laws.counts_of(triangle, theta, "gumbel", samples, seeded(repeat, 81)).double()
        for i, edge in enumerate(("01", "02", "12")):
            percent = 100 * (counts @ triangle.vertices[:, i] / samples).item()
            put(metrics, f"inclusion_percent_{edge}", "sampled", f"seed{repeat}", percent)
    return {}


def _incidence() -> Tensor:
    """Which of 4 nodes are ends of which of 6 edges, (4, 6)."""
    first, second = torch.triu_indices(4, 4, 1)
    nodes = torch.arange(4).unsqueeze(1)
    touches: Tensor = (nodes == first) | (nodes == second)
    return touches.double()


def measure_race(seed: int, samples: int, metrics: Metrics) -> Rows:
    """Exponential clocks: when the first one rings, which one it is, and that the two are independent."""
    draws = max(2000, samples // 5)
    found = [laws.exponential_race(RATES, draws, seeded(repeat, 90)) for repeat in range(RACES)]
    for name in found[0].p_values:
        put(metrics, "race_p", name, "exact", laws.uniform_p([race.p_values[name] for race in found]))
    for repeat, race in enumerate(found):
        put(metrics, "race_correlation", "main", f"seed{repeat}", race.correlation)
        for i, mean in enumerate(race.means.tolist()):
            put(metrics, "race_mean_first_time", f"clock{i}", f"seed{repeat}", mean)
    table = torch.stack([race.table for race in found]).sum(0)
    shares = (100 * table / table.sum(1, keepdim=True)).tolist()
    return {"race": [{"tenth": j, **{f"clock{i}": x for i, x in enumerate(row)}} for j, row in enumerate(shares, 1)]}


def measure_precision(seed: int, samples: int, metrics: Metrics) -> Rows:
    """Percentage of complete graphs on 10 nodes with a wrong marginal, by method, against the range of u / t."""
    count = max(20, 300 * samples // 100_000)
    rows = []
    for stream, spread in enumerate(RANGES):
        u = spread * torch.rand(count, 45, generator=seeded(seed, 100 + stream), dtype=torch.float64)
        row: dict[str, float] = {"seed": seed, "range": spread}
        for name, error in precision.errors(u).items():
            failed = ~(error <= precision.FAILED)  # not a number: no answer
            row[name] = 100 * failed.double().mean().item()
            put(metrics, f"failed_percent_range{spread}", name, f"seed{seed}", row[name])
        rows.append(row)
    return {"precision": rows}


#: Name -> what is measured, and the repeats; long jobs first.
PARTS: dict[str, tuple[Callable[[int, int, Metrics], Rows], range]] = {
    **{f"law_{name}": (partial(measure_law, name), range(1)) for name in (*OTHERS, *MATROIDS)},
    "race": (measure_race, range(1)),
    "precision": (measure_precision, SEEDS),
    "identities": (measure_identities, SEEDS),
    "trees": (measure_trees, range(1)),
    "example": (measure_example, range(1)),
}


def job(preset: str, key: tuple[str, int]) -> dict[str, Any]:
    """One part for one seed: its `metrics`, `rows` of each table, and the state `folder`, where it is remembered."""
    name, seed = key
    samples = paper_settings.load(preset).gradient_samples
    code = code_sha256(Path(__file__))
    made_by = digest(code=code, part=name, seed=seed, samples=samples, device=digest_of_device(pick_device()))

    def work() -> dict[str, Any]:
        metrics: Metrics = {}
        rows = PARTS[name][0](seed, samples, metrics)
        return {"metrics": metrics, "rows": rows}

    with StateFolder(f"sst-{preset}-theory-{name}-seed{seed}", made_by) as folder:
        return {**remembered(folder, work), "folder": str(folder.folder)}


def main() -> None:
    """Parse, measure everything, write, and only then forget the finished parts."""
    parser = argparse.ArgumentParser(description="Measure the limits, identities and laws that the paper proves.")
    parser.add_argument("--preset", required=True, help="block of papers/sst/params.yaml")
    preset = parser.parse_args().preset
    paper_settings.load(preset)  # so that a wrong name is refused before anything runs
    origin = provenance.begin("theory", preset, None, Path(__file__))
    results = parallel(partial(job, preset), [(name, seed) for name, (_, seeds) in PARTS.items() for seed in seeds])
    tables: Rows = {}
    for result in results:
        for table, rows in result["rows"].items():
            tables.setdefault(table, []).extend(rows)
    place = runs(PAPER, preset)
    for table, rows in tables.items():
        write_rows(place / "theory" / f"{table}.csv", rows)
    write_metrics(place / "theory" / "metrics.json", merge([result["metrics"] for result in results]))
    origin.finish(place / "provenance" / "theory.json")
    for result in results:
        discard(Path(result["folder"]))


if __name__ == "__main__":
    errors.run(main)
