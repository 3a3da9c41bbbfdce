"""The arms of learning to explain: how the scores of words become a subset, relaxed for training and hard for the test.

Paulus et al. (2020), section 8.3. All arms have the same networks but for the scores of pairs, which only correlated
subsets have.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from papers.sst import chains, subsets, utilities
from papers.sst.explain_model import PADDING, ComplexSelector, Predictor, Scores, SimpleSelector
from shared.solvers.chains import correlated_top_k
from shared.solvers.simple import top_k

Selection = Literal[
    "l2x", "softsub", "euclidean", "categorical", "binary", "marginals", "correlated", "all_words", "random_words"
]

Selector = Literal["simple", "complex", "none"]

RELAXATIONS: tuple[Selection, ...] = (
    "l2x",
    "softsub",
    "euclidean",
    "categorical",
    "binary",
    "marginals",
    "correlated",
)

#: Widths; published are 200 for embeddings, 100 for selectors and 250 for predictors, too slow for a processor.
EMBEDDING, HIDDEN = 32, 32
#: Standard deviation of the first embeddings: of the size of Adam's first steps, so that words part quickly.
EMBEDDING_SCALE = 0.1


@dataclass(frozen=True)
class Arm:
    """How words are selected, by which network, at which temperature, and Adam's largest learning rate."""

    selection: Selection
    selector: Selector = "none"
    temperature: float = 1.0
    learning_rate: float = 1e-2

    @property
    def name(self) -> str:
        """Such as `simple_marginals`; `all_words` and `random_words` have no selector."""
        return self.selection if self.selector == "none" else f"{self.selector}_{self.selection}"


def l2x(scores: Tensor, k: int, temperature: float) -> Tensor:
    """The relaxed subset (B, T) of Chen et al. (2018): the largest of k independent concrete variables, word by word.

    Its sum lies between 1 and k: the same word may be drawn several times.
    """
    concrete = subsets.categorical(utilities.sample(scores, "gumbel", k), temperature)
    return concrete.amax(0)


def softsub(scores: Tensor, k: int, temperature: float) -> Tensor:
    """The relaxed subset (B, T), with sum k, of Xie and Ermon (2019): k softmaxes of scores with Gumbel noise.

    After each of them log(1 - x) is added to the scores: the words that it took are hardly taken again.
    """
    keys = utilities.sample(scores, "gumbel")
    taken = torch.zeros_like(keys)
    total = torch.zeros_like(keys)
    for _ in range(k):
        keys = keys + (1 - taken).clamp_min(torch.finfo(keys.dtype).tiny).log()
        taken = subsets.categorical(keys, temperature)
        total = total + taken
    return total


def relaxed(scores: Scores, selection: Selection, k: int, temperature: float) -> Tensor:
    """A relaxed random subset of k words, (B, T), with torch's generator; differentiable in the scores.

    The scores of words are perturbed with Gumbel noise, those of pairs are not.

    Raises:
        ValueError: the selection is no relaxation, or pairs have no scores where they should.
    """
    if selection == "l2x":
        return l2x(scores.words, k, temperature)
    if selection == "softsub":
        return softsub(scores.words, k, temperature)
    perturbed = utilities.sample(scores.words, "gumbel")
    if selection == "euclidean":
        return subsets.k_subset_euclidean(perturbed, k, temperature)
    if selection == "categorical":
        return subsets.k_subset_categorical(perturbed, k, temperature)
    if selection == "binary":
        return subsets.k_subset_binary(perturbed, k, temperature)
    if selection == "marginals":
        return chains.k_subset_marginals(perturbed, k, temperature)
    if selection == "correlated":
        together = chains.correlated_marginals(_with_pairs(perturbed, scores), k, temperature)
        return together[..., : perturbed.shape[-1]]
    raise ValueError(f"{selection!r} has no relaxation")


def hard(scores: Scores, selection: Selection, k: int) -> Tensor:
    """The best k words, 0/1 (B, T): what the test looks at; without noise and without gradient."""
    if selection == "correlated":
        return correlated_top_k(_with_pairs(scores.words, scores), k)[..., : scores.words.shape[-1]]
    return top_k(scores.words, k)


def _with_pairs(words: Tensor, scores: Scores) -> Tensor:
    if scores.pairs is None:
        raise ValueError("correlated subsets need scores of pairs")
    return torch.cat([words, scores.pairs], -1)


class Explainer(nn.Module):
    """A predictor, and for arms that learn scores a selector; arms of one seed begin with the same weights."""

    def __init__(self, arm: Arm, words: int) -> None:
        super().__init__()
        self.arm = arm
        self.predictor = Predictor(words, embedding=EMBEDDING, hidden=HIDDEN)
        pairs = arm.selection == "correlated"
        self.selector: SimpleSelector | ComplexSelector | None = None
        if arm.selector == "simple":
            self.selector = SimpleSelector(words, embedding=EMBEDDING, hidden=HIDDEN, pairs=pairs)
        elif arm.selector == "complex":
            self.selector = ComplexSelector(words, embedding=EMBEDDING, hidden=HIDDEN, pairs=pairs)
        for module in self.modules():
            if isinstance(module, nn.Embedding):
                module.weight.data.mul_(EMBEDDING_SCALE)

    def selected(self, tokens: Tensor, k: int) -> Tensor:
        """The share of each word of (B, T) in the prediction, times k: relaxed while training, else hard."""
        present = tokens != PADDING
        if self.arm.selection == "all_words":
            return present * (k / present.sum(-1, keepdim=True))
        if self.selector is None:
            noise = utilities.draw_noise(torch.zeros(tokens.shape, device=tokens.device), "gumbel")
            return top_k(torch.where(present, noise, -torch.inf), k)
        scores = self.selector(tokens)
        if self.training:
            return relaxed(scores, self.arm.selection, k, self.arm.temperature)
        return hard(scores, self.arm.selection, k)

    def forward(self, tokens: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Ratings (B,) of texts (B, T), and what they were made of, (B, T)."""
        selected = self.selected(tokens, k)
        return self.predictor(tokens, selected, k), selected
