"""Several short starts of a graph-layout model, the best of which is trained on, as one resumable run.

Which of its basins a start falls into is chance: many learn the complement of the graph. After a few hundred steps the
bound on validation graphs tells them apart, without labels.
"""

from collections.abc import Callable
from typing import Any

import msgspec
import torch
from torch import Tensor

from papers.sst.graph_layout import Layouts
from papers.sst.layout_metrics import edge_metrics
from papers.sst.layout_training import Measured, Trainer, measure
from papers.sst.model import directed_from_undirected
from shared.training.checkpoint import StateFolder
from shared.training.loop import Record, fit

#: Steps of a start. They are the first ones of the training, learning rates included.
START_STEPS = 300
#: Rows of a training curve.
CURVE_ROWS = 10
#: A new decoder's error is about 10^4 nats; a network that lets nothing move has 3 * 10^3.
LOSS_BOUND = 1e8


def edge_numbers(found: Measured, layouts: Layouts) -> dict[str, float]:
    """Precision and recall in percent: of the drawn graphs, raw and as published, and of the likeliest graphs."""
    true = directed_from_undirected(layouts.trees, layouts.frames.shape[1])
    drawn, likeliest = edge_metrics(found.edges, true), edge_metrics(found.likeliest, true)
    return {
        "edge_precision": 100 * drawn.precision,
        "edge_recall": 100 * drawn.recall,
        "raw_precision": 100 * drawn.raw_precision,
        "raw_recall": 100 * drawn.raw_recall,
        "likeliest_raw_precision": 100 * likeliest.raw_precision,
    }


class Restarts:
    """`count` starts of `START_STEPS` steps, then the best one to the end of its schedule.

    Args:
        make: number of a start -> its trainer, anew each time.
        count: starts.
        validation: graphs that choose; their trees are looked at for the record only.
    """

    def __init__(self, make: Callable[[int], Trainer], count: int, validation: Layouts) -> None:
        self.make, self.count, self.validation = make, count, validation
        self.trainer, self.start = make(0), 0
        self.length = min(START_STEPS, self.trainer.steps)
        self.starts: list[dict[str, float]] = []
        self.curve: list[dict[str, float]] = []
        self.best: dict[str, Any] = {}
        self.every = max(1, self.trainer.steps // CURVE_ROWS)

    @property
    def steps(self) -> int:
        """Of all starts together, and of the rest of the best one."""
        return (self.count - 1) * self.length + self.trainer.steps

    def step(self, k: int) -> dict[str, Tensor | float]:
        """Step `k` of the whole run; gives the row of the record."""
        start, own = divmod(k, self.length)
        if start >= self.count:  # the best one goes on behind its own start
            own = k - (self.count - 1) * self.length
        elif own == 0:
            self.trainer, self.start = self.make(start), start
        row = self.trainer.step(own)
        if start < self.count and own + 1 == self.length:
            self._judge()
        elif start >= self.count and ((own + 1) % self.every == 0 or own + 1 == self.trainer.steps):
            found = measure(self.trainer.model, self.trainer.arm, self.validation, self.trainer.device)
            self.curve.append({"step": own + 1, **msgspec.to_builtins(found.elbo)})
        return row

    def _judge(self) -> None:
        """Record the start that ends here and keep the best; after the last one, take it up again."""
        found = measure(self.trainer.model, self.trainer.arm, self.validation, self.trainer.device)
        elbo = found.elbo.elbo_nats
        if not self.starts or elbo > max(row["elbo_nats"] for row in self.starts):
            # Copies: tensors of a state are those of the networks.
            state = _copied(self.trainer.state_dict())
            row = {"step": self.length, **msgspec.to_builtins(found.elbo)}
            self.best = {"start": self.start, "trainer": state, "row": row}
        self.starts.append({"elbo_nats": elbo, **edge_numbers(found, self.validation)})
        if len(self.starts) == self.count:
            self.start = self.best["start"]
            self.trainer = self.make(self.start)
            self.trainer.load_state_dict(self.best["trainer"])
            self.curve, self.best = [self.best["row"]], {}

    def state_dict(self) -> dict[str, Any]:
        """What is saved."""
        own = {"start": self.start, "starts": self.starts, "curve": self.curve, "best": self.best}
        return {**own, "trainer": self.trainer.state_dict()}

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """What was saved."""
        self.start, self.starts, self.curve, self.best = (state[k] for k in ("start", "starts", "curve", "best"))
        self.trainer = self.make(self.start)
        self.trainer.load_state_dict(state["trainer"])


def _copied(state: Any) -> Any:
    """The same state with tensors of its own."""
    if isinstance(state, torch.Tensor):
        return state.detach().clone()
    if isinstance(state, dict):
        return {key: _copied(value) for key, value in state.items()}
    return [_copied(value) for value in state] if isinstance(state, list) else state


def train(run: Restarts, folder: StateFolder, seed: int, label: str, save_seconds: float = 20.0) -> Record:
    """Run or resume all of it."""
    return fit(
        run.step,
        steps=run.steps,
        seed=seed,
        state={"run": run},
        folder=folder,
        guard=("loss", LOSS_BOUND),
        record_every=run.every,
        check_every=20,
        save_seconds=save_seconds,
        label=label,
    )
