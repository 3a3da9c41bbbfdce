"""The tables of the report as CSV: the graph layouts and their starts, ListOps, learning to explain."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from papers.sst.figures_explain import REFERENCES, RELAXATIONS, SELECTORS
from papers.sst.figures_layout import ARMS, HORIZONS, RULES
from shared.comparisons import Metrics
from shared.measurements import mean_and_ends
from shared.report.tables import Cell, write_csv
from shared.statistics import mean

Lines = tuple[list[str], list[list[Cell]]]

#: Percentage of right edges among n - 1 random ones of ten vertices.
CHANCE = 20.0
KINDS = ("found", "complement", "neither")
#: Of the paper, second-hand: bound in nats a vertex, precision and recall in percent, at T = 10 and T = 20.
PAPER_LAYOUT = {
    "tree": ((-1080, 91, 91), (-1280, 99, 99)),
    "tree_short": ((-1080, 91, 91), (-1280, 99, 99)),
    "top_k_short": ((-2100, 41, 41), (-1700, 98, 98)),
    "independent_short": ((-1370, 48, 93), (-1340, 97, 99)),
}
#: Arm -> its name, and accuracy, edge precision and edge recall of the paper in percent, second-hand.
LISTOPS = {
    "lstm": ("none: LSTM", "92.1"),
    "undirected": ("independent, undirected", "89.4 / 20.1 / 45.4"),
    "spanning_tree": ("spanning tree", "91.2 / 33.1 / 47.9"),
    "directed": ("independent, directed", "90.1 / 13.0 / 56.4"),
    "one_parent": ("one parent for each token (ours)", None),
    "arborescence_negative_exponential": ("arborescence, negative exponential", "71.5 / 23.2 / 20.0"),
    "arborescence_gaussian": ("arborescence, Gaussian", "95.0 / 65.3 / 60.8"),
    "arborescence": ("arborescence, Gumbel", "95.0 / 75.0 / 71.9"),
    "gold": ("true edges, given", "98.1 / 100 / 100"),
}


def write_tables(folder: Path, metrics: Metrics, starts: Mapping[str, Sequence[Mapping[str, float]]]) -> None:
    """Every table that has a row."""
    tables = {
        "graphs_t10": graphs(metrics, 10),
        "graphs_t20": graphs(metrics, 20),
        "references": references(metrics),
        "starts": short_starts(starts),
        "listops": parsers(metrics),
        "explain": explained(metrics),
    }
    for name, (header, lines) in tables.items():
        if lines:
            write_csv(folder / f"{name}.csv", header, lines)


def graphs(metrics: Metrics, horizon: int) -> Lines:
    """A line a model: bound, edges, whole graphs, what the paper has; below them the rules that nobody trained."""
    header = ["model", "ELBO", "low", "high", "ELBO, KL twice", "precision, %", "low", "high", "recall, %"]
    header += ["raw precision, %", "of the likeliest graph, %", "graphs without error, %", "NLL by the true motion"]
    header += ["steps", "training (s)", "n", "paper (unverified)"]
    names = ("elbo_double_kl_nats", "edge_precision", "edge_recall", "raw_precision", "likeliest_raw_precision")
    lines: list[list[Cell]] = []
    for arm in (arm for arm in ARMS if arm in metrics.get(f"t{horizon}_elbo_nats", {})):
        means: dict[str, Cell] = {
            name: mean_and_ends(metrics, f"t{horizon}_{name}", arm)[0]
            for name in (*names, "recovered_graphs", "exact_decoder_nll_nats", "train_steps", "train_seconds")
        }
        paper = PAPER_LAYOUT.get(arm)
        quoted = " / ".join(map(str, paper[HORIZONS.index(horizon)])) if paper else None
        lines.append(
            [ARMS[arm].label, *mean_and_ends(metrics, f"t{horizon}_elbo_nats", arm), means["elbo_double_kl_nats"]]
            + mean_and_ends(metrics, f"t{horizon}_edge_precision", arm)
            + [means[name] for name in ("edge_recall", "raw_precision", "likeliest_raw_precision", "recovered_graphs")]
            + [means[name] for name in ("exact_decoder_nll_nats", "train_steps", "train_seconds")]
            + [len(metrics[f"t{horizon}_elbo_nats"][arm]), quoted]
        )
    for rule in RULES if lines else ():
        precision = metrics.get(f"t{horizon}_edge_precision", {}).get(rule, {}).get("exact")
        untrained: list[Cell] = [None] * len(header)
        untrained[0], untrained[5], untrained[8], untrained[9] = RULES[rule], precision, precision, precision
        lines.append(untrained)
    return header, lines


def references(metrics: Metrics) -> Lines:
    """A line a rule that nobody trained."""
    header = ["rule", "T", "precision = recall, %", "NLL of the true motion with this graph", "NLL if nothing moves"]
    labels = {**RULES, "true_tree": "the true tree", "no_edges": "no edges", "persistence": "nothing moves"}
    lines: list[list[Cell]] = []
    for horizon in HORIZONS:
        for rule, label in labels.items():
            cells = [
                metrics.get(f"t{horizon}_{name}", {}).get(rule, {}).get("exact")
                for name in ("edge_precision", "exact_decoder_nll_nats", "nll_nats")
            ]
            if any(cell is not None for cell in cells):
                lines.append([label, horizon, *cells])
    return header, lines


def kind_of_start(row: Mapping[str, float]) -> str:
    """What a short start has learnt: `found` most edges, the `complement` (fewer right than chance), `neither` yet."""
    if not row["failed"]:
        return "found"
    return "complement" if row["raw_precision"] < CHANCE else "neither"


def short_starts(starts: Mapping[str, Sequence[Mapping[str, float]]]) -> Lines:
    """A line an arm and horizon: what the short starts had learnt, and the bounds that tell."""
    header = ["model", "T", "starts", "most edges found", "complement learnt", "neither yet"]
    header += ["worst ELBO with most edges", "best ELBO of a complement"]
    lines: list[list[Cell]] = []
    for arm in (arm for arm in ARMS if arm in starts):
        for horizon in HORIZONS:
            rows = [row for row in starts[arm] if row["horizon"] == horizon]
            kinds = {kind: [row["elbo_nats"] for row in rows if kind_of_start(row) == kind] for kind in KINDS}
            if rows:
                counts: list[Cell] = [len(kinds[kind]) for kind in KINDS]
                ends: list[Cell] = [min(kinds["found"], default=None), max(kinds["complement"], default=None)]
                lines.append([ARMS[arm].label, horizon, len(rows), *counts, *ends])
    return header, lines


def parsers(metrics: Metrics) -> Lines:
    """A line a source of edges: accuracy of hard samples, without noise and relaxed; edges; what the paper has."""
    header = ["edges", "accuracy, %", "low", "high", "without noise, %", "relaxed, %"]
    header += [
        "edge precision, %",
        "low",
        "high",
        "edge recall, %",
        "recall of arguments, %",
        "n",
        "paper (unverified)",
    ]
    lines: list[list[Cell]] = []
    for arm, (label, paper) in LISTOPS.items():
        if arm in metrics.get("listops_accuracy", {}):
            found: dict[str, Cell] = {
                name: mean_and_ends(metrics, f"listops_{name}", arm)[0]
                for name in ("map_accuracy", "relaxed_accuracy", "edge_recall", "argument_recall")
            }
            line: list[Cell] = [label, *mean_and_ends(metrics, "listops_accuracy", arm), found["map_accuracy"]]
            line += [found["relaxed_accuracy"], *mean_and_ends(metrics, "listops_edge_precision", arm)]
            line += [found["edge_recall"], found["argument_recall"]]
            lines.append([*line, len(metrics["listops_accuracy"][arm]), paper])
    return header, lines


def explained(metrics: Metrics) -> Lines:
    """A line a selector and relaxation: error and precision on planted spans, error on real texts."""
    columns = [f"planted_k{k}_{name}" for k in (5, 10, 15) for name in ("mse_x100", "precision")]
    columns += ["sentences_k5_mse_x100", "movies_k10_mse_x100", "movies_k10_accuracy"]
    header = ["selector", "relaxation"]
    header += [f"planted, k = {k}: {name}" for k in (5, 10, 15) for name in ("MSE x 100", "precision, %")]
    header += ["sentences, k = 5: MSE x 100", "movies, k = 10: MSE x 100", "accuracy, %", "n"]
    looks = {name: look.label for name, look in RELAXATIONS.items()}
    names = [(f"{selector}_{name}", selector, label) for selector in SELECTORS for name, label in looks.items()]
    names += [(name, "none", label) for name, label in REFERENCES.items()]
    lines: list[list[Cell]] = []
    for arm, selector, label in names:
        found = [metrics.get(column, {}).get(arm, {}) for column in columns]
        if any(found):
            means: list[Cell] = [mean(list(values.values())) if values else None for values in found]
            lines.append([selector, label, *means, max(map(len, found))])
    return header, lines
