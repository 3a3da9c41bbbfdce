"""Speed of the batched trees, arborescences and marginals: `python -m benchmarks.sst`.

The task is that of a training step on the graph layouts: 128 complete graphs on 10 nodes. The combinatorial baselines
are those of networkx, one graph after the other. The graph is built once and its weights are replaced, so that the time
is that of solving. The marginals' baseline is what a page on the matrix-tree theorem suggests: the log-determinant of a
minor, derived once for the marginals and once more for their gradient. All take turns, and a turn of each takes about
as long, so that they see the same machine.
"""

import argparse
import statistics
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import networkx as nx
import torch
from torch import Tensor

from benchmarks.timing import entry, in_turns
from papers.sst.spanning_trees import marginals
from shared import errors, provenance
from shared.files import write_json
from shared.paths import reports, runs
from shared.solvers.arborescence import max_arborescence
from shared.solvers.spanning_tree import max_spanning_tree
from shared.training.memory import keep_freed_memory

GRAPHS, NODES = 128, 10
EDGES = list(combinations(range(NODES), 2))
TEMPERATURE, MAX_RANGE = 1.0, 15.0

Solve = Callable[[Tensor], Tensor]


def networkx_trees(algorithm: str) -> Solve:
    """Maximum spanning trees by networkx, (B, E) to (B, E); its default is Kruskal's method."""
    graph = nx.complete_graph(NODES)
    weights = [graph.edges[edge] for edge in EDGES]
    number = {edge: k for k, edge in enumerate(EDGES)}

    def solve(scores: Tensor) -> Tensor:
        trees = []
        for row in scores.tolist():
            for data, score in zip(weights, row, strict=True):
                data["weight"] = score
            tree = nx.maximum_spanning_edges(graph, algorithm=algorithm, data=False)
            trees.append([number[min(edge), max(edge)] for edge in tree])
        return torch.zeros_like(scores).scatter_(1, torch.tensor(trees), 1)

    return solve


def networkx_arborescences(root: int = 0) -> Solve:
    """Maximum arborescences by networkx, (B, n, n) to (B, n, n): no edge leads into the root, so it is the root."""
    graph = nx.DiGraph((i, j) for i in range(NODES) for j in range(NODES) if j not in (i, root))

    def solve(scores: Tensor) -> Tensor:
        chosen = torch.zeros_like(scores)
        for indicator, rows in zip(chosen, scores.tolist(), strict=True):
            for i, j, data in graph.edges(data=True):
                data["weight"] = rows[i][j]
            tree = nx.maximum_spanning_arborescence(graph)
            indicator[tuple(torch.tensor(list(tree.edges)).T)] = 1
        return chosen

    return solve


def marginals_by_log_determinant(utilities: Tensor) -> Tensor:
    """Marginals (B, E) with a graph for a second derivative: the gradient of log det of a minor of the Laplacian."""
    first, second = torch.triu_indices(NODES, NODES, 1)
    exponents = utilities / TEMPERATURE
    top = exponents.amax(-1, keepdim=True)
    exponents = torch.maximum(exponents, top - MAX_RANGE)
    weights = utilities.new_zeros(len(utilities), NODES, NODES)
    weights[:, first, second] = (exponents - top.detach()).exp()
    weights = weights + weights.mT
    laplacian = torch.diag_embed(weights.sum(-1)) - weights
    log_z = torch.linalg.slogdet(laplacian[:, 1:, 1:]).logabsdet
    return torch.autograd.grad(log_z.sum(), exponents, create_graph=True)[0]


def marginals_in_closed_form(utilities: Tensor) -> Tensor:
    """The same by the paper's module."""
    return marginals(utilities, TEMPERATURE, MAX_RANGE)


def assert_as_good(scores: Tensor, ours: Tensor, theirs: Tensor) -> None:
    """Raise AssertionError unless both choices have the same sum of scores in each instance."""
    sums = [(scores * chosen).flatten(1).sum(1) for chosen in (ours, theirs)]
    torch.testing.assert_close(*sums, rtol=1e-5, atol=1e-5)


def gumbel(*shape: int) -> Tensor:
    """Utilities of a model that knows nothing: standard Gumbel numbers."""
    return -torch.empty(shape).exponential_().log()


def combinatorial_entries(rounds: int) -> list[dict[str, object]]:
    """Instances a second of the batched solvers against networkx."""
    torch.manual_seed(0)
    pairs = gumbel(GRAPHS, len(EDGES))
    tasks: list[tuple[str, Tensor, Solve, Solve]] = [
        ("spanning_tree_vs_networkx", pairs, max_spanning_tree, networkx_trees("kruskal")),
        ("spanning_tree_vs_networkx_prim", pairs, max_spanning_tree, networkx_trees("prim")),
        ("arborescence_vs_networkx", gumbel(GRAPHS, NODES, NODES), max_arborescence, networkx_arborescences()),
    ]
    entries = []
    for name, scores, solve, rival in tasks:
        assert_as_good(scores, solve(scores), rival(scores))
        count = max(1, rounds // 10) if name.startswith("arborescence") else rounds  # a turn of networkx takes a second
        seconds = in_turns([lambda: solve(scores), lambda: rival(scores)], count)  # noqa: B023 - called at once
        ours, theirs = (GRAPHS / statistics.median(times) for times in seconds)
        how = f"higher is better; CPU, 1 thread, float32; {GRAPHS} graphs of {NODES} nodes; median of {count} rounds"
        entries.append(entry(name, ours, theirs, "graphs/s", ours / theirs, how))
    return entries


def marginal_entries(rounds: int) -> list[dict[str, object]]:
    """Forward and backward through the marginals, in closed form against double backward."""
    torch.manual_seed(0)
    utilities = gumbel(GRAPHS, len(EDGES)).requires_grad_()
    cotangent = torch.randn(GRAPHS, len(EDGES))

    def slope(function: Solve, of: Tensor = utilities) -> Tensor:
        return torch.autograd.grad(function(of), of, cotangent.to(of.dtype))[0]

    exact = slope(marginals_by_log_determinant, utilities.detach().double().requires_grad_())
    torch.testing.assert_close(slope(marginals_in_closed_form).double(), exact, rtol=1e-4, atol=1e-4)
    works: list[Callable[[], object]] = [
        lambda: slope(marginals_in_closed_form),
        lambda: slope(marginals_by_log_determinant),
    ]
    ours, theirs = (1000 * statistics.median(times) for times in in_turns(works, rounds))
    how = (
        "lower is better; forward and backward, float32; ratio: baseline over ours; CPU, 1 thread; "
        f"{GRAPHS} graphs of {NODES} nodes; median of {rounds} rounds"
    )
    return [entry("tree_marginal_gradient_vs_double_backward", ours, theirs, "ms", theirs / ours, how)]


def main() -> None:
    """Measure and write `reports/sst/benchmark.json`."""
    parser = argparse.ArgumentParser(description="Speed of the batched trees, arborescences and tree marginals.")
    parser.add_argument("--preset", default="laptop")
    preset = parser.parse_args().preset
    origin = provenance.begin("benchmark", preset, None, Path(__file__))
    rounds = 3 if preset == "smoke" else 100
    torch.set_num_threads(1)
    keep_freed_memory()  # as in the training stages
    entries = [*combinatorial_entries(rounds), *marginal_entries(rounds)]
    write_json(reports("sst") / "benchmark.json", entries)
    origin.finish(runs("sst", preset) / "provenance" / "benchmark.json")
    for row in entries:
        print(f"{row['name']}: {row['ours']} against {row['baseline']} {row['unit']}, ratio {row['ratio']}")


if __name__ == "__main__":
    errors.run(main)
