"""Train one selector and predictor of learning to explain (Paulus et al., 2020, section 8.3), and judge it.

In training the predictor sees the mean embedding of a relaxed random subset of k words, in the test that of the best k
words, without noise. The arms differ in how scores become a relaxed subset and in nothing else.
"""

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from papers.sst.explain_arms import Arm, Explainer
from papers.sst.reviews import (
    PLANTED_WORDS,
    Reviews,
    graded_sentences,
    movie_reviews,
    planted_spans,
    selection_precision,
)
from shared.data.batches import batch_indices, seed_step
from shared.paths import DATA
from shared.training.flat import flatten
from shared.training.loop import gradient_step
from shared.training.schedules import cosine_with_warmup

TaskName = Literal["planted", "sentences", "movies"]
BATCH = 32
WARM_UP = 0.1  # share of the steps over which the learning rate rises
CHECKS = 5  # looks at the validation texts along a run; the best network is kept
#: Of the planted sequences; those of seed 0 were looked at while settings were chosen.
PLANTED_SEED = 1
#: Most texts of each split that a run uses.
TRAIN_TEXTS, VALIDATION_TEXTS, TEST_TEXTS = 20_000, 500, 2_000
#: Words of a text and of the vocabulary that are kept.
SENTENCE_WORDS, SENTENCE_VOCABULARY = 50, 5_000
MOVIE_WORDS, MOVIE_VOCABULARY = 200, 5_000
_EVALUATED_AT_ONCE = 500


@dataclass(frozen=True)
class Task:
    """The texts of one experiment; ids are below `words`."""

    name: TaskName
    words: int
    train: Reviews
    validation: Reviews
    test: Reviews

    def sha256(self) -> str:
        """A name for the content, in hexadecimal."""
        digest = hashlib.sha256()
        for part in (self.train, self.validation, self.test):
            for tensor in (part.tokens, part.ratings):
                digest.update(tensor.numpy().tobytes())
        return digest.hexdigest()


@functools.cache
def load_task(name: TaskName, sample: bool = False, folder: Path = DATA) -> Task:
    """The texts of a task, cut to what a run uses; read once a process.

    Args:
        name: of the task.
        sample: accept the small test samples in place of the full sets, and plant a fortieth of the sequences.
        folder: what stands for `data/`.

    Raises:
        UserError: a file is missing, damaged, or an unwanted sample.
    """
    if name == "planted":
        less = 40 if sample else 1
        parts = [
            planted_spans("train", TRAIN_TEXTS // less, seed=PLANTED_SEED),
            planted_spans("validation", VALIDATION_TEXTS // less, seed=PLANTED_SEED),
            planted_spans("test", TEST_TEXTS // less, seed=PLANTED_SEED),
        ]
        return Task(name, PLANTED_WORDS + 1, *parts)
    if name == "sentences":
        found = graded_sentences(longest=SENTENCE_WORDS, size=SENTENCE_VOCABULARY, folder=folder, allow_sample=sample)
    else:
        found = movie_reviews(longest=MOVIE_WORDS, size=MOVIE_VOCABULARY, folder=folder, allow_sample=sample)
    parts = [first(found.train, TRAIN_TEXTS), first(found.validation, VALIDATION_TEXTS), first(found.test, TEST_TEXTS)]
    return Task(name, len(found.vocabulary), *parts)


def first(texts: Reviews, count: int) -> Reviews:
    """The first `count` texts, or all if there are no more."""
    spans = None if texts.spans is None else texts.spans[:count]
    return Reviews(texts.tokens[:count], texts.lengths[:count], texts.ratings[:count], spans, texts.texts[:count])


# --- judging ---


@torch.no_grad()
def evaluate(model: Explainer, texts: Reviews, k: int) -> dict[str, float]:
    """Numbers of the hard selection on some texts; the noise of random words is the same at every call.

    Returns:
        `mse_x100`; where the explanation is known `precision`, and where all ratings are 0 or 1 `accuracy`, in percent.
    """
    seed_step(0, 0)
    model.eval()
    outputs = [model(tokens, k) for tokens in texts.tokens.split(_EVALUATED_AT_ONCE)]
    model.train()
    ratings, selected = (torch.cat(parts) for parts in zip(*outputs, strict=True))
    numbers = {"mse_x100": 100 * float((ratings - texts.ratings).square().mean())}
    if texts.spans is not None:
        numbers["precision"] = 100 * float(selection_precision(selected, texts.spans).mean())
    if bool(((texts.ratings == 0) | (texts.ratings == 1)).all()):
        numbers["accuracy"] = 100 * float(((ratings > 0.5) == (texts.ratings > 0.5)).float().mean())
    return numbers


@torch.no_grad()
def explain(model: Explainer, texts: Reviews, k: int, rows: Sequence[int]) -> list[dict[str, Any]]:
    """For some texts the prediction `predicted` and the positions `selected` of the words that it was made of."""
    model.eval()
    ratings, selected = model(texts.tokens[list(rows)], k)
    model.train()
    return [
        {"predicted": round(rating, 4), "selected": [i for i, share in enumerate(shares) if share]}
        for rating, shares in zip(ratings.tolist(), selected.tolist(), strict=True)
    ]


# --- training ---


class Best:
    """The weights with the least validation error so far, as a part of the state of a run."""

    def __init__(self) -> None:
        self.mse_x100 = float("inf")
        self.step = 0  # steps done
        self.weights: dict[str, Tensor] = {}

    def offer(self, model: nn.Module, mse_x100: float, step: int) -> None:
        """Take a copy of the weights if they are better than the best so far."""
        if mse_x100 < self.mse_x100:
            self.mse_x100, self.step = mse_x100, step
            self.weights = {name: value.clone() for name, value in model.state_dict().items()}

    def state_dict(self) -> dict[str, Any]:
        """For the shared loop."""
        return {"mse_x100": self.mse_x100, "step": self.step, "weights": self.weights}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """For the shared loop."""
        self.mse_x100, self.step = state_dict["mse_x100"], state_dict["step"]
        self.weights = state_dict["weights"]


class Trainer:
    """One training of an arm on a task: network, optimiser, best weights, and `step(j)` for the shared loop.

    Arms of one seed see the same texts in the same order.
    """

    def __init__(self, task: Task, arm: Arm, k: int, seed: int, steps: int, device: torch.device) -> None:
        seed_step(seed, -1)
        self.task, self.arm, self.k, self.seed, self.steps = task, arm, k, seed, steps
        parts = (task.train, task.validation, task.test)
        self.train, self.validation, self.test = (_to(texts, device) for texts in parts)
        self.batch = min(BATCH, len(task.train))
        self.check_every = -(-steps // CHECKS)
        self.model = Explainer(arm, task.words).to(device)
        self.optimizer = torch.optim.Adam([flatten(self.model)], lr=arm.learning_rate, fused=True)
        self.best = Best()

    def state(self) -> dict[str, nn.Module | torch.optim.Optimizer | Best]:
        """All that must be saved to go on."""
        return {"model": self.model, "optimizer": self.optimizer, "best": self.best}

    def step(self, j: int) -> dict[str, Tensor]:
        """One optimiser step on the squared error; now and then a look at the validation texts."""
        for group in self.optimizer.param_groups:
            warm_up = round(WARM_UP * self.steps)
            group["lr"] = cosine_with_warmup(j, self.steps, self.arm.learning_rate, 0.0, warm_up)
        rows = batch_indices(len(self.train), self.batch, self.seed, j).to(self.train.tokens.device)
        # Columns that are padding in all texts of the batch are not computed.
        longest = max(self.k, int(self.train.lengths[rows].max()))
        ratings, _ = self.model(self.train.tokens[rows, :longest], self.k)
        loss = (ratings - self.train.ratings[rows]).square().mean()
        gradient = gradient_step(loss, self.optimizer)
        if (j + 1) % self.check_every == 0 or j + 1 == self.steps:
            self.best.offer(self.model, evaluate(self.model, self.validation, self.k)["mse_x100"], j + 1)
        return {"loss": loss.detach(), "gradient_norm": gradient["gradient_norm"]}

    def restore_best(self) -> None:
        """Put the best weights into the network."""
        self.model.load_state_dict(self.best.weights)


def _to(texts: Reviews, device: torch.device) -> Reviews:
    spans = None if texts.spans is None else texts.spans.to(device)
    return Reviews(
        texts.tokens.to(device), texts.lengths.to(device), texts.ratings.to(device), spans=spans, texts=texts.texts
    )
