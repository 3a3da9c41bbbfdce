"""Selectors and predictor of learning to explain (Chen et al., 2018; Paulus et al., 2020, section 8.3).

A selector scores the words of a text; a structured layer, which is not part of this module, turns the scores into a
subset of k words or into a point of the polytope of subsets; the predictor sees nothing but the selected words.
Texts are (B, T) ids with 0 for padding. What stands in the padding changes no output.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

PADDING = 0
#: The score of padding: never selected while there are words left, and finite, for texts of fewer than k words.
PADDED_SCORE = -1e4


class Scores(NamedTuple):
    """Scores of words (B, T) and, for correlated subsets, of neighbouring words chosen together (B, T - 1)."""

    words: Tensor
    pairs: Tensor | None


class _Heads(nn.Module):
    """Scores from the features (B, C, T) of words: a linear one of each word, one of each pair of neighbours."""

    def __init__(self, channels: int, pairs: bool) -> None:
        super().__init__()
        self.word = nn.Conv1d(channels, 1, 1)
        self.pair = nn.Conv1d(channels, 1, 2) if pairs else None

    def forward(self, features: Tensor, present: Tensor) -> Scores:
        words = torch.where(present, self.word(features)[:, 0], PADDED_SCORE)
        if self.pair is None:
            return Scores(words, None)
        # Padding is on the right: where the second word is present, so is the first.
        return Scores(words, self.pair(features)[:, 0] * present[:, 1:])


class SimpleSelector(nn.Module):
    """One convolution and a linear layer: with a window of one word, each word is scored without its context.

    Args:
        words: size of the vocabulary.
        embedding: features of a word.
        hidden: channels of the convolution.
        window: words that it sees, an odd number.
        pairs: score pairs of neighbours, too.
    """

    def __init__(
        self, words: int, *, embedding: int = 200, hidden: int = 100, window: int = 1, pairs: bool = False
    ) -> None:
        super().__init__()
        if window < 1 or window % 2 == 0:
            raise ValueError(f"the window is an odd number of words, got {window}")
        self.embedding = nn.Embedding(words, embedding, padding_idx=PADDING)
        self.convolution = nn.Conv1d(embedding, hidden, window, padding=window // 2)
        self.heads = _Heads(hidden, pairs)

    def forward(self, tokens: Tensor) -> Scores:
        """Scores of the words of `tokens` (B, T)."""
        present = tokens != PADDING
        scores: Scores = self.heads(self.convolution(self.embedding(tokens).mT).relu(), present)
        return scores


class ComplexSelector(nn.Module):
    """The selector of Chen et al. (2018): convolutions for a word's context, beside a summary of the whole text.

    Embedding -> convolution of 3 words -> (a) largest value over the text -> dense; (b) two more convolutions of 3
    words; both concatenated -> dropout 0.2 -> dense -> score. Every hidden layer has `hidden` units and a ReLU.

    Args:
        words: size of the vocabulary.
        embedding: features of a word.
        hidden: units of each layer.
        pairs: score pairs of neighbours, too.
    """

    def __init__(self, words: int, *, embedding: int = 200, hidden: int = 100, pairs: bool = False) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, embedding, padding_idx=PADDING)
        self.first = nn.Conv1d(embedding, hidden, 3, padding=1)
        self.summary = nn.Linear(hidden, hidden)
        self.second = nn.Conv1d(hidden, hidden, 3, padding=1)
        self.third = nn.Conv1d(hidden, hidden, 3, padding=1)
        self.dropout = nn.Dropout(0.2)
        self.joint = nn.Conv1d(2 * hidden, hidden, 1)
        self.heads = _Heads(hidden, pairs)

    def forward(self, tokens: Tensor) -> Scores:
        """Scores of the words of `tokens` (B, T)."""
        present = tokens != PADDING
        # Biases make padding non-zero after a convolution; the next one would carry that into the last words.
        mask = present[:, None]
        features = self.first(self.embedding(tokens).mT).relu() * mask
        # A ReLU is never below the zeros of the padding.
        summary = self.summary(features.amax(-1)).relu()
        local = self.second(features).relu() * mask
        local = self.third(local).relu()
        joint = torch.cat([local, summary[..., None].expand(-1, -1, tokens.shape[1])], dim=1)
        scores: Scores = self.heads(self.joint(self.dropout(joint)).relu(), present)
        return scores


class Predictor(nn.Module):
    """A rating in (0, 1) from the mean embedding of the selected words, through one hidden layer.

    Args:
        words: size of the vocabulary.
        embedding: features of a word.
        hidden: units of the hidden layer.
    """

    def __init__(self, words: int, *, embedding: int = 200, hidden: int = 250) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, embedding, padding_idx=PADDING)
        self.hidden = nn.Linear(embedding, hidden)
        self.rating = nn.Linear(hidden, 1)

    def forward(self, tokens: Tensor, selected: Tensor, k: int) -> Tensor:
        """Ratings (B,) of texts (B, T).

        Args:
            tokens: ids.
            selected: 0/1 indicator of the selected words, or a relaxed one, (B, T).
            k: what the sum of the selected embeddings is divided by, also where padding had to be selected.
        """
        mean = (selected[:, None] @ self.embedding(tokens))[:, 0] / k
        ratings: Tensor = self.rating(self.hidden(mean).relu())[:, 0].sigmoid()
        return ratings
