"""A training loop that can be killed at any moment and goes on to the same bits.

The paper writes what one step does; the loop seeds it, guards it, records it and saves it. A step may hold anything:
two optimisers, a sampler, several backward passes.
"""

import math
import time
from collections.abc import Callable, Mapping
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


class Divergence(Exception):
    """A loss that is not finite or past its bound; the text names step and cause."""

    def __init__(self, step: int, name: str, value: float, bound: float) -> None:
        cause = f"{name} = {value:.4g}" + ("" if math.isfinite(value) else " is not finite")
        super().__init__(f"diverged at step {step}: {cause} (bound {bound:g})")
        self.step = step


@dataclass
class Record:
    """What a run leaves behind: rows of means over `record_every` steps, and how it went."""

    rows: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0  # of training, over all attempts
    earlier_seconds: float = 0.0  # of them, before the last interruption
    interruptions: int = 0  # how often the run was resumed


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
    optimizer.zero_grad(set_to_none=True)
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
        check_every: steps between looks at the guard (looking forces a device to finish its work).
        save_seconds: seconds between saves; they have no influence on the result.

    Raises:
        Divergence: the guard was passed; the last state before it stays in the folder.
        UserError: the state cannot be read or written; the last good one is kept.
    """
    record, sums, start = _restore(folder, state)
    began, saved = time.monotonic() - record.seconds, time.monotonic()
    progress = tqdm(range(start, steps), desc=label, initial=start, total=steps, disable=rank() > 0, mininterval=2.0)
    for k in progress:
        seed_step(seed, k)
        row = _over_processes(step(k))
        if (k + 1) % check_every == 0 or k + 1 == steps:
            _check(k, guard, row)
        for name, value in row.items():
            sums[name] = sums.get(name, 0.0) + value
        if (k + 1) % record_every == 0 or k + 1 == steps:
            _close_row(record, sums, k + 1, (k % record_every) + 1)
            progress.set_postfix_str(f"{guard[0]} {record.rows[-1][guard[0]]:.2f}", refresh=False)
        if time.monotonic() - saved > save_seconds and k + 1 < steps and rank() == 0:
            _check(k, guard, row)
            record.seconds = time.monotonic() - began
            _save(folder, state, record, sums, k + 1)
            saved = time.monotonic()
    record.seconds = time.monotonic() - began
    return record


def _check(k: int, guard: tuple[str, float], row: Mapping[str, Tensor | float]) -> None:
    """The guarded scalar must keep its bound, and every scalar must be finite: a spoiled state is never saved."""
    name, bound = guard
    for each in (name, *row):
        value = float(row[each])
        if not math.isfinite(value) or (each == name and value > bound):
            raise Divergence(k, each, value, bound)


def _over_processes(row: Mapping[str, Tensor | float]) -> Mapping[str, Tensor | float]:
    """The means over the processes, so that all of them record and judge the same numbers."""
    if world_size() == 1:
        return row
    values = torch.stack([torch.as_tensor(value, dtype=torch.float32) for value in row.values()])
    return dict(zip(row, all_reduce_mean(values).unbind(), strict=True))


def _close_row(record: Record, sums: dict[str, Any], step: int, count: int) -> None:
    record.rows.append({"step": step, **{name: float(total) / count for name, total in sums.items()}})
    sums.clear()


def _save(folder: StateFolder, state: Mapping[str, Stateful], record: Record, sums: dict[str, Any], step: int) -> None:
    folder.save(
        {
            "step": step,
            "rows": record.rows,
            "sums": sums,
            "seconds": record.seconds,
            "interruptions": record.interruptions,
            "state": {name: part.state_dict() for name, part in state.items()},
        }
    )


def _restore(folder: StateFolder, state: Mapping[str, Stateful]) -> tuple[Record, dict[str, Any], int]:
    saved = folder.load()
    if world_size() > 1:
        dist.barrier()  # nobody may save before everybody has read
    if saved is None:
        return Record(), {}, 0
    for name, part in state.items():
        part.load_state_dict(saved["state"][name])
    record = Record(saved["rows"], saved["seconds"], saved["seconds"], saved["interruptions"] + 1)
    return record, saved["sums"], saved["step"]


def parameters_average(model: nn.Module, decay: float) -> torch.optim.swa_utils.AveragedModel:
    """Exponential moving average of a model's weights and buffers; call `update_parameters(model)` after each step."""
    average = torch.optim.swa_utils.get_ema_multi_avg_fn(decay)
    return torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=average, use_buffers=True)
