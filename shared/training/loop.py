"""A training loop that can be killed at any moment and goes on to the same bits.

The paper writes what one step does; the loop seeds it, guards it, records it and saves it. A step may hold anything:
two optimisers, a sampler, several backward passes.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from tqdm import tqdm

from shared.data.batches import seed_step
from shared.training.checkpoint import StateFolder
from shared.training.distributed import all_reduce_mean, average_gradients, rank, world_size


class Stateful(Protocol):
    """Anything that belongs to the state of a run: a module, an optimiser, an average."""

    def state_dict(self) -> Any: ...

    def load_state_dict(self, state_dict: Any, /) -> Any: ...


@dataclass
class Record:
    """What a run leaves behind: rows over `record_every` steps, and how it went."""

    rows: list[dict[str, float]] = field(default_factory=list)  # means, and the largest values asked for
    seconds: float = 0.0  # of training, over all attempts
    earlier_seconds: float = 0.0  # of them, before the last interruption
    interruptions: int = 0  # how often the run was resumed


class Divergence(Exception):
    """A loss that is not finite or past its bound; the text names step and cause.

    Attributes:
        step: the step that was refused.
        record: what was recorded before that step; its last row may hold fewer steps than the others.
    """

    def __init__(self, step: int, name: str, value: float, bound: float) -> None:
        cause = f"{name} = {value:.4g}" + ("" if math.isfinite(value) else " is not finite")
        super().__init__(f"diverged at step {step}: {cause} (bound {bound:g})")
        self.step = step
        self.record = Record()


@dataclass
class _Open:
    """The steps since the last row was closed."""

    sums: dict[str, Any] = field(default_factory=dict)
    largest: dict[str, Any] = field(default_factory=dict)

    def add(self, row: Mapping[str, Tensor | float], largest: Sequence[str]) -> None:
        """Take in one step; nothing here waits for a device."""
        for name, value in row.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        for name in largest:
            value = torch.as_tensor(row[name], dtype=torch.float64)
            earlier = self.largest.get(name, value).to(value.device)  # a restored one lies on the CPU
            self.largest[name] = torch.maximum(earlier, value)

    def close(self, step: int, count: int) -> dict[str, float]:
        """The row of the last `count` steps, the last of them the `step`-th; the next row begins."""
        means = {name: float(total) / count for name, total in self.sums.items()}
        peaks = {f"largest_{name}": float(value) for name, value in self.largest.items()}
        self.sums, self.largest = {}, {}
        return {"step": step, **means, **peaks}


def gradient_step(
    loss: Tensor, optimizer: torch.optim.Optimizer, clip_norm: float | None = None, skip_norm: float | None = None
) -> dict[str, Tensor]:
    """Backward pass, averaging over processes, optional clipping, optimiser step.

    Args:
        clip_norm: gradients are scaled down to this global norm.
        skip_norm: no update at all where the norm is larger than this or not finite.

    Returns:
        `gradient_norm`, and `clipped` and `skipped` as 0 or 1, so that the record counts them.
    """
    optimizer.zero_grad(set_to_none=False)  # they may be views of one buffer (`flatten`)
    loss.backward()
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    average_gradients(parameters)
    grads = [p.grad for p in parameters if p.grad is not None]
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)))
    zero = torch.zeros((), device=norm.device)
    skipped = zero if skip_norm is None else (~(norm <= skip_norm)).float()
    clipped = zero if clip_norm is None else (norm > clip_norm).float()
    if clip_norm is not None:
        torch.nn.utils.clip_grads_with_norm_(parameters, clip_norm, norm)
    if skip_norm is None or not bool(skipped):
        optimizer.step()
    return {"gradient_norm": norm, "clipped": clipped, "skipped": skipped}


def fit(
    step: Callable[[int], Mapping[str, Tensor | float]],
    *,
    steps: int,
    seed: int,
    state: Mapping[str, Stateful],
    folder: StateFolder,
    guard: tuple[str, float] = ("loss", 1e6),
    record_every: int = 50,
    largest: Sequence[str] = (),
    check_every: int = 1,
    save_seconds: float = 20.0,
    label: str = "train",
) -> Record:
    """Run `step(k)` for k = 0 .. steps-1, resuming from `folder` if it holds a state of this run.

    Args:
        step: does everything of step k and returns scalars; random numbers in it are seeded by (seed, k).
        state: what must be saved and restored to go on; names are the keys in the file.
        guard: name of a scalar and its bound; above it, or with any scalar not finite, `Divergence` is raised.
        record_every: each row of the record is the mean over so many steps.
        largest: scalars whose largest value over the steps of a row is recorded too, as `largest_<name>`.
        check_every: steps between looks at the guard (looking forces a device to finish its work).
        save_seconds: seconds between saves; they have no influence on the result.

    Raises:
        Divergence: the guard was passed; it carries the record so far, and the last state before it stays in the
            folder.
        UserError: the state cannot be read or written; the last good one is kept.
    """
    record, since, start = _restore(folder, state)
    began, saved = time.monotonic() - record.seconds, time.monotonic()
    progress = tqdm(range(start, steps), desc=label, initial=start, total=steps, disable=rank() > 0, mininterval=2.0)
    for k in progress:
        seed_step(seed, k)
        row = _over_processes(step(k))
        closing = (k + 1) % record_every == 0 or k + 1 == steps
        saving = time.monotonic() - saved > save_seconds and k + 1 < steps and rank() == 0
        if closing or saving or (k + 1) % check_every == 0:
            refused = _refused(k, guard, row)
            if refused is not None:
                progress.close()
                record.seconds = time.monotonic() - began
                refused.record = _with_open_row(record, since, k, k % record_every)
                raise refused
        since.add(row, largest)
        if closing:
            record.rows.append(since.close(k + 1, (k % record_every) + 1))
            progress.set_postfix_str(f"{guard[0]} {record.rows[-1][guard[0]]:.2f}", refresh=False)
        if saving:
            record.seconds = time.monotonic() - began
            _save(folder, state, record, since, k + 1)
            saved = time.monotonic()
    record.seconds = time.monotonic() - began
    return record


def _refused(k: int, guard: tuple[str, float], row: Mapping[str, Tensor | float]) -> Divergence | None:
    """The guarded scalar must keep its bound, and every scalar must be finite: a spoiled state is never saved."""
    name, bound = guard
    for each in (name, *row):
        value = float(row[each])
        if not math.isfinite(value) or (each == name and value > bound):
            return Divergence(k, each, value, bound)
    return None


def _with_open_row(record: Record, since: _Open, step: int, count: int) -> Record:
    """The record with the steps since its last row; without them where a step that was not looked at spoiled them."""
    row = since.close(step, count) if count else {}
    if row and all(map(math.isfinite, row.values())):
        record.rows.append(row)
    return record


def _over_processes(row: Mapping[str, Tensor | float]) -> Mapping[str, Tensor | float]:
    """The means over the processes, so that all of them record and judge the same numbers."""
    if world_size() == 1:
        return row
    values = torch.stack([torch.as_tensor(value, dtype=torch.float32) for value in row.values()])
    return dict(zip(row, all_reduce_mean(values).unbind(), strict=True))


def _save(folder: StateFolder, state: Mapping[str, Stateful], record: Record, since: _Open, step: int) -> None:
    folder.save(
        {
            "step": step,
            "rows": record.rows,
            "sums": since.sums,
            "largest": since.largest,
            "seconds": record.seconds,
            "interruptions": record.interruptions,
            "state": {name: part.state_dict() for name, part in state.items()},
        }
    )


def _restore(folder: StateFolder, state: Mapping[str, Stateful]) -> tuple[Record, _Open, int]:
    saved = folder.load()
    if world_size() > 1:
        dist.barrier()  # nobody may save before everybody has read
    if saved is None:
        return Record(), _Open(), 0
    for name, part in state.items():
        part.load_state_dict(saved["state"][name])
    record = Record(saved["rows"], saved["seconds"], saved["seconds"], saved["interruptions"] + 1)
    return record, _Open(saved["sums"], saved["largest"]), saved["step"]


def parameters_average(model: nn.Module, decay: float) -> torch.optim.swa_utils.AveragedModel:
    """Exponential moving average of a model's weights and buffers; call `update_parameters(model)` after each step."""
    average = torch.optim.swa_utils.get_ema_multi_avg_fn(decay)
    return torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=average, use_buffers=True)
