"""Training and measuring parsers of ListOps (Paulus et al., 2020, section 8.2): arms, structured layers, metrics.

All arms but the LSTM have the same graph network; what differs is where its edges come from. Scores s_ij of token i as
parent of token j are parameters of random utilities U, and the edges are a relaxed structure in training, the maximum
one at test. Both draw noise: the model is a stochastic argmax, and its accuracy that of one hard sample. There is no KL
term: cross-entropy of one relaxed sample is all that is minimised. No arm but `gold` ever sees a true edge.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from papers.sst import arborescences
from papers.sst.listops import CLOSE, Examples, Limits, batch_by_length, edge_agreement, gold_edges
from papers.sst.listops_model import EdgeScores, GraphClassifier, SequenceClassifier, possible_edges
from papers.sst.utilities import Law, draw_noise, reparameterise
from shared.data.batches import seed_step
from shared.solvers.arborescence import candidate_edges, max_arborescence
from shared.training.flat import flatten
from shared.training.loop import gradient_step
from shared.training.schedules import cosine_with_warmup

Structure = Literal["sequence", "gold", "undirected", "spanning_tree", "directed", "one_parent", "arborescence"]
How = Literal["relaxed", "hard", "map"]

WIDTH = 60  # of embeddings and hidden layers: the paper's
BATCH = 50
WARM_UP = 0.05  # share of the steps over which the learning rate rises
CLIP_NORM, SKIP_NORM = 5.0, 1e4  # of gradients: scaled down, and no step at all
#: Limit of U / t below the best edge into the same token, the authors' choice for trees.
MAX_RANGE = 15.0
#: Below it exp(-theta) of negative exponential utilities would overflow; such an edge is as good as absent.
LEAST_SCORE = -15.0
#: In each of them an edge has one utility for both directions, and messages pass in both.
UNDIRECTED = ("undirected", "spanning_tree")


@dataclass(frozen=True)
class Arm:
    """A model of ListOps.

    Attributes:
        structure: what the edges are; `sequence` is the LSTM without any, `gold` the true ones.
        law: of the utilities; independent edges have the difference of two Gumbel variables, a logistic one.
        temperature: t of the relaxation, in the unit of the utilities.
        learning_rate: Adam's largest.
    """

    structure: Structure
    law: Law = "gumbel"
    temperature: float = 1.0
    learning_rate: float = 3e-3

    @property
    def latent(self) -> bool:
        """Whether the edges are inferred."""
        return self.structure not in ("sequence", "gold")


#: Each arm's choice is the best of three on 2,000 validation expressions, with one seed and 2,000 steps: of the
#: learning rates 1.5e-3, 3e-3 and 6e-3 where no edges are inferred, of the temperatures 0.5, 1 and 2 where they are.
#: For negative exponential utilities, whose differences are small where scores are high, 0.2 was tried besides.
ARMS = {
    "lstm": Arm("sequence", learning_rate=6e-3),
    "undirected": Arm("undirected", temperature=2.0),
    "spanning_tree": Arm("spanning_tree", temperature=2.0),
    "directed": Arm("directed", temperature=2.0),
    "one_parent": Arm("one_parent"),
    "arborescence": Arm("arborescence"),
    "arborescence_gaussian": Arm("arborescence", "gaussian", temperature=2.0),
    "arborescence_negative_exponential": Arm("arborescence", "negative_exponential", temperature=0.5),
    "gold": Arm("gold", learning_rate=6e-3),
}


def limits(longest: int) -> Limits:
    """Which expressions are drawn: up to 20 tokens a short task of depth 3, above it the lengths of the paper."""
    if longest <= 20:
        return Limits(shortest=min(6, longest), longest=longest, deepest=3)
    return Limits(longest=longest)


# --- structured layers ---


def utilities(arm: Arm, scores: Tensor, how: How = "relaxed", generator: torch.Generator | None = None) -> Tensor:
    """Utilities U (B, T, T) of scores (B, T, T); for `map` the noise is replaced by a constant.

    Undirected edges have the mean score of both directions and one utility, so the result is symmetric. Arms with
    Gumbel and with negative exponential utilities draw the same waiting times.
    """
    theta = (scores + scores.mT) / 2 if arm.structure in UNDIRECTED else scores
    if arm.law == "negative_exponential":
        theta = theta.clamp_min(LEAST_SCORE)
    if how == "map":
        # Waiting times at their mean 1; a constant added to all edges chooses nothing, and logistic noise has mean 0.
        return reparameterise(theta, -torch.ones_like(theta), arm.law) if arm.law == "negative_exponential" else theta
    noise = draw_noise(theta, arm.law, generator=generator)
    if arm.structure in ("undirected", "directed"):
        noise = noise - draw_noise(theta, arm.law, generator=generator)
    if arm.structure in UNDIRECTED:
        noise = noise.triu(1) + noise.triu(1).mT
    return reparameterise(theta, noise, arm.law)


def relaxed_edges(arm: Arm, u: Tensor, lengths: Tensor) -> Tensor:
    """The point X_t (B, T, T) of the polytope of the arm's structures, differentiable in the utilities u (B, T, T).

    Independent edges: the sigmoid, two-way Gumbel-softmax. One parent: a softmax over the parents of each token.
    Trees: marginals. The arborescences with a fixed root are the spanning trees, oriented; with the same weight in both
    directions of an edge the marginal of the undirected edge is thus the sum of those of its directions.

    Raises:
        ValueError: a minor of the Laplacian is singular in float64 in spite of the limited range, as for NaN.
    """
    if arm.structure in ("undirected", "directed"):
        return (u / arm.temperature).sigmoid() * possible_edges(lengths, u.shape[-1])
    if arm.structure == "one_parent":
        edges = candidate_edges(u, 0, lengths)
        shares = (u / arm.temperature).masked_fill(~edges, torch.finfo(u.dtype).min).softmax(-2)
        return torch.where(edges, shares, 0)
    mu = arborescences.marginals(u, arm.temperature, lengths=lengths, max_range=MAX_RANGE)
    return mu + mu.mT if arm.structure == "spanning_tree" else mu


@torch.no_grad()
def hard_edges(arm: Arm, u: Tensor, lengths: Tensor) -> Tensor:
    """The structure X (B, T, T) with the largest sum of utilities: what `relaxed_edges` tends to as t goes to 0."""
    if arm.structure in ("undirected", "directed"):
        return ((u > 0) & possible_edges(lengths, u.shape[-1])).to(u.dtype)
    if arm.structure == "one_parent":
        edges = candidate_edges(u, 0, lengths)
        best = u.masked_fill(~edges, -torch.inf).argmax(-2, keepdim=True)
        return torch.zeros_like(u).scatter_(-2, best, 1.0) * edges
    tree = max_arborescence(u, lengths=lengths)
    return tree + tree.mT if arm.structure == "spanning_tree" else tree


class Parser(nn.Module):
    """A whole model: scores of edges, the structured layer of an arm, and the classifier.

    The first weights are those of every other parser with the same seed and parts of the same shape.

    Args:
        arm: decides which parts there are.
        rounds: of messages along the edges.
        seed: of the first weights.
    """

    def __init__(self, arm: Arm, rounds: int, seed: int) -> None:
        super().__init__()
        self.arm = arm
        seed_step(seed, -1)
        if arm.structure == "sequence":
            self.classifier: nn.Module = SequenceClassifier(embedding=WIDTH, hidden=WIDTH)
        else:
            self.classifier = GraphClassifier(embedding=WIDTH, hidden=WIDTH, rounds=rounds)
        self.scores = EdgeScores(embedding=WIDTH, hidden=WIDTH) if arm.latent else None

    def edges(self, batch: Examples, how: How, generator: torch.Generator | None = None) -> Tensor:
        """Edges (B, T, T) of a batch: inferred ones, the true ones for `gold`; none for `sequence`."""
        if self.scores is None:
            gold = gold_edges(batch.heads)
            return gold if self.arm.structure == "gold" else torch.zeros_like(gold)
        u = utilities(self.arm, self.scores(batch.tokens, batch.lengths), how, generator)
        return (relaxed_edges if how == "relaxed" else hard_edges)(self.arm, u, batch.lengths)

    def logits(self, batch: Examples, edges: Tensor) -> Tensor:
        """Logits (B, 10) of the value, given the edges."""
        given = () if self.arm.structure == "sequence" else (edges,)
        result: Tensor = self.classifier(batch.tokens, batch.lengths, *given)
        return result


# --- metrics ---


def batches(examples: Examples, size: int, device: torch.device) -> Iterator[Examples]:
    """All examples, the shortest first, `size` at a time."""
    for indices in examples.lengths.argsort(stable=True).split(size):
        yield to_device(examples.take(indices), device)


def to_device(batch: Examples, device: torch.device) -> Examples:
    """The batch on a device."""
    return Examples(*(tensor.to(device) for tensor in vars(batch).values()))


def target_edges(arm: Arm, heads: Tensor) -> Tensor:
    """The true edges (B, T, T), in both directions where the arm's edges have none."""
    gold = gold_edges(heads)
    return gold + gold.mT if arm.structure in UNDIRECTED else gold


@torch.no_grad()
def measure(parser: Parser, examples: Examples, how: How, size: int = 250) -> dict[str, float]:
    """Accuracy, and precision and recall of the edges (means over expressions, as `edge_agreement`), in percent.

    `argument_recall` leaves out the edges to closing brackets, which no value depends on. The noise is the same for
    every parser with the same law of utilities.
    """
    device = next(parser.parameters()).device
    generator = torch.Generator(device).manual_seed(0)
    sums = torch.zeros(4, dtype=torch.float64)
    for batch in batches(examples, size, device):
        edges = parser.edges(batch, how, generator)
        right = (parser.logits(batch, edges).argmax(1) == batch.labels).sum()
        gold, open_ = target_edges(parser.arm, batch.heads), batch.tokens != CLOSE
        precision, recall = edge_agreement(edges, gold)
        _, of_arguments = edge_agreement(edges, gold * open_[:, :, None] * open_[:, None, :])
        sums += torch.stack([right, precision.sum(), recall.sum(), of_arguments.sum()]).double().cpu()
    accuracy, precision, recall, of_arguments = (100 * sums / len(examples)).tolist()
    found = {"accuracy": accuracy}
    if parser.arm.structure != "sequence" and how != "relaxed":
        found |= {"edge_precision": precision, "edge_recall": recall, "argument_recall": of_arguments}
    return found


# --- training ---


class Curve:
    """Measurements along a run, as a part of its state."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def state_dict(self) -> dict[str, Any]:
        """For the shared loop."""
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """For the shared loop."""
        self.rows = state_dict["rows"]


class Trainer:
    """One training run of an arm: parser, optimiser, curve, and `step(k)` for the shared loop.

    Args:
        arm: the model.
        train: examples to learn from.
        validation: examples for the curve.
        steps: of the optimiser.
        rounds: of messages.
        seed: of first weights, order of the examples and noise.
        device: where to compute.
        curve_every: steps between points of the curve.
    """

    def __init__(
        self,
        arm: Arm,
        train: Examples,
        validation: Examples,
        *,
        steps: int,
        rounds: int,
        seed: int,
        device: torch.device,
        curve_every: int,
    ) -> None:
        self.arm, self.train, self.validation = arm, train, validation
        self.steps, self.seed, self.device, self.curve_every = steps, seed, device, curve_every
        self.batch = min(BATCH, len(train))
        self.parser = Parser(arm, rounds, seed).to(device)
        self.optimizer = torch.optim.Adam([flatten(self.parser)], lr=arm.learning_rate, fused=True)
        self.curve = Curve()

    def state(self) -> dict[str, nn.Module | torch.optim.Optimizer | Curve]:
        """All that must be saved to go on."""
        return {"parser": self.parser, "optimizer": self.optimizer, "curve": self.curve}

    def step(self, k: int) -> dict[str, Tensor]:
        """One optimiser step on a batch of about equally long expressions; gives the row of the record."""
        for group in self.optimizer.param_groups:
            warm_up = round(WARM_UP * self.steps)
            group["lr"] = cosine_with_warmup(k, self.steps, self.arm.learning_rate, 0.0, warm_up)
        chosen = batch_by_length(self.train.lengths, self.batch, self.seed, k)
        batch = to_device(self.train.take(chosen), self.device)
        logits = self.parser.logits(batch, self.parser.edges(batch, "relaxed"))
        loss = F.cross_entropy(logits, batch.labels)
        gradient = gradient_step(loss, self.optimizer, CLIP_NORM, SKIP_NORM)
        if (k + 1) % self.curve_every == 0 or k + 1 == self.steps:
            self.curve.rows.append({"step": k + 1, **measure(self.parser, self.validation, "hard")})
        return {"loss": loss.detach(), "skipped": gradient["skipped"]}
