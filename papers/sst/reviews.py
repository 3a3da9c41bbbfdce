"""Texts for learning to explain: graded sentences, long movie reviews, and sequences whose explanation is known.

The published experiment uses beer reviews with human annotations, which are not free. Here two sets of real texts take
their place for the error of the prediction. For the precision of the selected words there is a planted task: the rating
depends on the words of one contiguous span alone, and these are the annotation.
"""

import csv
import html
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from shared.data.verify import Profile, check
from shared.errors import UserError
from shared.paths import DATA

Split = Literal["train", "validation", "test"]

#: Ids of the two entries with which every vocabulary begins.
PADDING, UNKNOWN = 0, 1
_RESERVED = ("<pad>", "<unk>")
#: The tables of graded sentences.
GRADED = ("amazonReviewSnippets", "movieReviewSnippets", "nytEditorialSnippets", "tweets")
#: The ratings of graded sentences lie in [-4, 4].
_LARGEST_RATING = 4.0
#: A word with its apostrophes and hyphens, or a run of other signs: an ellipsis or a smiley is one token.
_TOKEN = re.compile(r"\w+(?:['’-]\w+)*|[^\w\s]+")
_TAG = re.compile(r"<[^<>]*>")

#: The planted task: words of a sequence, of the vocabulary (id 0 is padding, which never occurs), words of a span.
PLANTED_LENGTH, PLANTED_WORDS, PLANTED_SPAN = 100, 200, (15, 25)
#: Ids from 1 on: words of the topic, then opinions; the rest fill the text up.
TOPIC_WORDS, OPINION_WORDS = 40, 60
_TOPIC_INSIDE, _TOPIC_OUTSIDE = 0.5, 0.05
_OPINION_INSIDE, _OPINION_OUTSIDE, _SCORE = 0.5, 0.25, 0.5
_BLOCK = 1000


@dataclass(frozen=True)
class Reviews:
    """Rated texts, padded on the right.

    Attributes:
        tokens: ids, int64 (N, T), `PADDING` after the end.
        lengths: words of each text, at most T, int64 (N,).
        ratings: float32 (N,), in [0, 1], larger is better.
        spans: words that explain the rating, bool (N, T); None where nobody knows.
        texts: what the ids were made of, for `words`; empty for planted spans.
    """

    tokens: Tensor
    lengths: Tensor
    ratings: Tensor
    spans: Tensor | None = None
    texts: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.ratings)

    def words(self, i: int) -> list[str]:
        """The words of text `i` that the network sees, as they were before rare ones became unknown."""
        if self.texts:
            return tokenise(self.texts[i])[: int(self.lengths[i])]
        return [f"w{token}" for token in self.tokens[i].tolist()]


class Corpus(NamedTuple):
    """The three splits of a set, the id of each known word, and whether the data are the full ones."""

    train: Reviews
    validation: Reviews
    test: Reviews
    vocabulary: dict[str, int]
    profile: Profile


class _Text(NamedTuple):
    """One text, its rating in [0, 1], and the document it is from: no document is divided between splits."""

    text: str
    rating: float
    document: str


def tokenise(text: str) -> list[str]:
    """Lower-case words and runs of punctuation; entities are replaced and mark-up tags dropped."""
    return _TOKEN.findall(_TAG.sub(" ", html.unescape(text)).lower())


def vocabulary(texts: Iterable[Sequence[str]], *, size: int = 20_000, least: int = 2) -> dict[str, int]:
    """Word -> id, by falling frequency, equally frequent ones in the order of the alphabet.

    Args:
        texts: tokenised; those for training only.
        size: most entries, padding and unknown included.
        least: how often a word has to occur.

    Raises:
        ValueError: no room for a single word.
    """
    if size <= len(_RESERVED):
        raise ValueError(f"a vocabulary of {size} has no room for words beside {' and '.join(_RESERVED)}")
    counts = Counter(word for words in texts for word in words)
    frequent = sorted(
        (word for word, count in counts.items() if count >= least), key=lambda word: (-counts[word], word)
    )
    return {word: i for i, word in enumerate((*_RESERVED, *frequent[: size - len(_RESERVED)]))}


def encode(texts: Sequence[Sequence[str]], ids: dict[str, int], longest: int) -> tuple[Tensor, Tensor]:
    """Ids (N, longest) and lengths (N,) of tokenised texts; what is longer is cut, what is shorter padded.

    An empty text becomes one unknown word, so that there is always something to select.
    """
    tokens = np.full((len(texts), longest), PADDING, dtype=np.int64)
    lengths = np.zeros(len(texts), dtype=np.int64)
    for row, words in enumerate(texts):
        found = [ids.get(word, UNKNOWN) for word in words[:longest]] or [UNKNOWN]
        tokens[row, : len(found)] = found
        lengths[row] = len(found)
    return torch.from_numpy(tokens), torch.from_numpy(lengths)


def graded_sentences(
    *, longest: int = 50, size: int = 20_000, seed: int = 0, folder: Path = DATA, allow_sample: bool = False
) -> Corpus:
    """Sentences of reviews, news and tweets with the mean rating of 15 to 20 people (Hutto and Gilbert, 2014).

    Args:
        longest: words that are kept of a sentence.
        size: most words of the vocabulary.
        seed: of the splits: 80, 10 and 10 % of the documents.
        folder: what stands for `data/`.
        allow_sample: accept the sample.

    Raises:
        UserError: a file is missing, damaged or an unwanted sample, or a line is not id, rating and sentence.
    """
    names = [f"{table}_GroundTruth.txt" for table in GRADED]
    profile = check("graded_sentiment", names, folder=folder, allow_sample=allow_sample)
    texts = []
    for name in names:
        path = folder / "graded_sentiment" / name
        for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
            if not line.strip():
                continue
            try:
                identity, mean, text = line.split("\t")
                rating = (float(mean) / _LARGEST_RATING + 1) / 2
            except ValueError:
                raise UserError(f"{path}:{number} is not an id, a rating and a sentence between tabs") from None
            # A sentence of document 17 of a table is named 17_1, 17_2, ...
            texts.append(_Text(text.strip(), rating, f"{name}/{identity.split('_')[0]}"))
    return _corpus(texts, profile, longest, size, seed)


def movie_reviews(
    *, longest: int = 350, size: int = 20_000, seed: int = 0, folder: Path = DATA, allow_sample: bool = False
) -> Corpus:
    """Long reviews of films with rating 0 or 1 (Maas et al., 2011); those that occur twice stay in one split.

    Arguments are those of `graded_sentences`.

    Raises:
        UserError: the file is missing, damaged or an unwanted sample, or a row is not text, label and source.
    """
    name = "combined_movie_reviews.csv"
    profile = check("movie_reviews", [name], folder=folder, allow_sample=allow_sample)
    path = folder / "movie_reviews" / name
    texts = []
    with open(path, newline="", encoding="utf-8") as file:
        for number, row in enumerate(csv.reader(file), start=1):
            if number == 1 and row == ["text", "label", "source"]:
                continue
            if len(row) != 3 or row[1] not in ("0", "1"):
                raise UserError(f"{path}: row {number} is not a text, a label 0 or 1 and a source")
            if row[2] == "imdb":
                texts.append(_Text(row[0], float(row[1]), row[0]))
    return _corpus(texts, profile, longest, size, seed)


def _corpus(texts: Sequence[_Text], profile: Profile, longest: int, size: int, seed: int) -> Corpus:
    """Split by document, build the vocabulary from the training texts, encode all."""
    documents = sorted({text.document for text in texts})
    if len(documents) < 3:
        raise UserError(f"{len(documents)} documents cannot be split into training, validation and test")
    order = torch.randperm(len(documents), generator=torch.Generator().manual_seed(seed)).tolist()
    held_out = max(len(documents) // 10, 1)
    place = {documents[index]: position for position, index in enumerate(order)}
    parts: tuple[list[_Text], list[_Text], list[_Text]] = ([], [], [])
    for text in texts:
        position = place[text.document]
        parts[2 if position < held_out else 1 if position < 2 * held_out else 0].append(text)
    words = [[tokenise(text.text) for text in part] for part in parts]
    ids = vocabulary(words[0], size=size)
    splits = [
        Reviews(
            *encode(tokenised, ids, longest),
            torch.tensor([text.rating for text in part]),
            texts=tuple(text.text for text in part),
        )
        for part, tokenised in zip(parts, words, strict=True)
    ]
    return Corpus(splits[0], splits[1], splits[2], ids, profile)


def planted_scores() -> Tensor:
    """What each id inside the span adds to the rating, float32 (PLANTED_WORDS + 1,): 0 for all but opinions.

    Opinions have the evenly spaced quantiles of a normal distribution of standard deviation 0.5, so that there are as
    many good as bad ones.
    """
    levels = (torch.arange(OPINION_WORDS, dtype=torch.float64) + 0.5) / OPINION_WORDS
    scores = torch.zeros(PLANTED_WORDS + 1)
    scores[1 + TOPIC_WORDS : 1 + TOPIC_WORDS + OPINION_WORDS] = (_SCORE * torch.special.ndtri(levels)).float()
    return scores


def planted_spans(split: Split, count: int, *, seed: int = 0) -> Reviews:
    """Sequences of 100 words out of 200 with one span of 15 to 25 words on a topic that alone decides the rating.

    A word of the span is one of the 40 words of the topic with probability 1/2, else one of 60 opinions with scores
    (`planted_scores`). Outside, topic words are rare (1/20), a quarter are opinions, drawn alike, that count for
    nothing, and the other words are 100 fillers without meaning. The rating is the sigmoid of the sum of the scores
    inside the span. A single opinion does not tell whether it lies in the span: twice as many lie outside. Its
    neighbours do, which is what pair scores are for.

    Args:
        split: each is a stream of its own.
        count: examples; a smaller number gives the first ones of a larger one.
        seed: of the data.
    """
    blocks = [_planted_block(split, block, seed) for block in range(-(-count // _BLOCK))]
    tokens = torch.cat([block[0] for block in blocks])[:count]
    spans = torch.cat([block[1] for block in blocks])[:count]
    ratings = (planted_scores()[tokens] * spans).sum(-1).sigmoid()
    return Reviews(tokens, torch.full((count,), PLANTED_LENGTH), ratings, spans)


@lru_cache(maxsize=2)
def _planted_block(split: Split, block: int, seed: int) -> tuple[Tensor, Tensor]:
    """Tokens and spans of one block of examples, (_BLOCK, PLANTED_LENGTH) both."""
    draw = np.random.default_rng([seed, ("train", "validation", "test").index(split), block])
    shape = (_BLOCK, PLANTED_LENGTH)
    length = draw.integers(PLANTED_SPAN[0], PLANTED_SPAN[1] + 1, size=(_BLOCK, 1))
    start = draw.integers(0, PLANTED_LENGTH - length + 1)
    place = np.arange(PLANTED_LENGTH)
    span = (start <= place) & (place < start + length)
    opinions_from = 1 + TOPIC_WORDS
    fillers_from = opinions_from + OPINION_WORDS
    topic = draw.integers(1, opinions_from, size=shape)
    opinion = draw.integers(opinions_from, fillers_from, size=shape)
    filler = draw.integers(fillers_from, 1 + PLANTED_WORDS, size=shape)
    topical = np.where(span, _TOPIC_INSIDE, _TOPIC_OUTSIDE)
    either = topical + np.where(span, _OPINION_INSIDE, _OPINION_OUTSIDE)
    kind = draw.random(shape)
    tokens = np.where(kind < topical, topic, np.where(kind < either, opinion, filler))
    return torch.from_numpy(tokens), torch.from_numpy(span)


def selection_precision(selected: Tensor, spans: Tensor) -> Tensor:
    """The share of the selected words that lie inside the annotation, (N,); 0 where nothing is selected.

    Args:
        selected: 0/1 indicator (N, T).
        spans: bool (N, T).
    """
    return (selected * spans).sum(-1) / selected.sum(-1).clamp_min(1)
