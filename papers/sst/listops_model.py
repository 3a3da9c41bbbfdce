"""Networks of the ListOps experiment (Paulus et al., 2020, section 8.2): edge scores, graph network, LSTM baseline.

`EdgeScores` gives a score to each ordered pair of tokens; a structured layer, which is not part of this module, turns
the scores into a tree or a point of its polytope; `GraphClassifier` computes the value from tokens and edges. Tokens
are (B, T) ids as in `papers.sst.listops`, padded on the right. What stands in the padding changes no output.
"""

import torch
from torch import Tensor, nn

from papers.sst.listops import CLASSES, VOCABULARY

_WORDS = len(VOCABULARY)


def present(lengths: Tensor, longest: int) -> Tensor:
    """Which of `longest` positions hold a token, bool (B, longest)."""
    return torch.arange(longest, device=lengths.device) < lengths[:, None]


def possible_edges(lengths: Tensor, longest: int) -> Tensor:
    """Which edges i -> j join two different tokens, in any direction, bool (B, longest, longest).

    Those of an arborescence are in `shared.solvers.arborescence.candidate_edges`: none leads into the root.

    Args:
        lengths: tokens of each expression, (B,).
        longest: padded length.
    """
    here = present(lengths, longest)
    return here[:, :, None] & here[:, None, :] & ~torch.eye(longest, dtype=torch.bool, device=lengths.device)


class _Encoder(nn.Module):
    """Features (B, T, hidden) of tokens by an LSTM, from the left or, in halves, from both sides."""

    def __init__(self, embedding: int, hidden: int, bidirectional: bool) -> None:
        super().__init__()
        if bidirectional and hidden % 2:
            raise ValueError(f"two directions share an even number of hidden units, got {hidden}")
        self.embedding = nn.Embedding(_WORDS, embedding)
        width = hidden // 2 if bidirectional else hidden
        self.forwards = nn.LSTM(embedding, width, batch_first=True)
        self.backwards = nn.LSTM(embedding, width, batch_first=True) if bidirectional else None

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        embedded = self.embedding(tokens)
        features: Tensor = self.forwards(embedded)[0]
        if self.backwards is None:
            return features
        # Reversed up to its length, an expression starts at position 0 again and padding stays behind it.
        place = torch.arange(tokens.shape[1], device=tokens.device)
        reverse = torch.where(place < lengths[:, None], lengths[:, None] - 1 - place, place)[..., None]
        from_right = self.backwards(embedded.gather(1, reverse.expand_as(embedded)))[0]
        return torch.cat([features, from_right.gather(1, reverse.expand_as(from_right))], dim=-1)


class EdgeScores(nn.Module):
    """Scores s_ij = p_i . (W c_j + b) of token i as parent of token j, with features p and c of two LSTM encoders.

    Args:
        embedding: features of a token.
        hidden: features that the encoders give.
        bidirectional: the encoders read from both sides, with half of the features each.
    """

    def __init__(self, *, embedding: int = 60, hidden: int = 60, bidirectional: bool = False) -> None:
        super().__init__()
        self.parent = _Encoder(embedding, hidden, bidirectional)
        self.child = _Encoder(embedding, hidden, bidirectional)
        self.bilinear = nn.Linear(hidden, hidden)

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Scores (B, T, T); those of edges that are not in `possible_edges` mean nothing."""
        parent, child = self.parent(tokens, lengths), self.bilinear(self.child(tokens, lengths))
        scores: Tensor = parent @ child.mT
        return scores


class GraphClassifier(nn.Module):
    """Logits of the value at token 0, after some rounds of messages along given edges; weights are shared by rounds.

    In each round a token receives the sum of the messages of its children, weighted by the edges, and adds to its
    features what a small network makes of them, of the features and of its embedding. Values flow from the leaves to
    the root, one level a round, so that an expression of depth d needs d rounds. Linear maps that follow each other are
    one, and what depends on the embedding alone is computed once.

    Args:
        embedding: features of a token.
        hidden: features of a token between the rounds.
        rounds: of messages.
    """

    def __init__(self, *, embedding: int = 60, hidden: int = 60, rounds: int = 5) -> None:
        super().__init__()
        self.rounds = rounds
        self.embedding = nn.Embedding(_WORDS, embedding)
        self.start = nn.Linear(embedding, hidden)
        self.token = nn.Linear(embedding, hidden)
        self.message = nn.Sequential(nn.Linear(hidden, hidden), nn.ReLU())
        self.joint = nn.Linear(2 * hidden, hidden, bias=False)
        self.update = nn.Linear(hidden, hidden)
        self.value = nn.Sequential(nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, CLASSES))

    def forward(self, tokens: Tensor, lengths: Tensor, edges: Tensor) -> Tensor:
        """Logits (B, 10).

        Args:
            tokens: ids (B, T).
            lengths: (B,).
            edges: weight of each edge i -> j from parent i to child j at [i, j], (B, T, T); symmetric for undirected
                structures, whose messages then pass in both directions.
        """
        here = present(lengths, tokens.shape[1])[..., None]
        embedded = self.embedding(tokens)
        token, features = self.token(embedded), self.start(embedded)
        for _ in range(self.rounds):
            received = edges @ (self.message(features) * here)
            features = features + self.update((token + self.joint(torch.cat([features, received], dim=-1))).relu())
        logits: Tensor = self.value(features[:, 0])
        return logits


class SequenceClassifier(nn.Module):
    """Logits (B, 10) of the value from the state of an LSTM after the last token: the baseline without structure.

    Args:
        embedding: features of a token.
        hidden: units of the LSTM.
    """

    def __init__(self, *, embedding: int = 60, hidden: int = 60) -> None:
        super().__init__()
        self.encoder = _Encoder(embedding, hidden, bidirectional=False)
        self.value = nn.Sequential(nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, CLASSES))

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Logits of expressions (B, T) of `lengths` (B,)."""
        features = self.encoder(tokens, lengths)
        last = features[torch.arange(len(tokens), device=tokens.device), lengths - 1]
        logits: Tensor = self.value(last)
        return logits
