"""Many small trainings on one machine: as many at a time as there are cores, and none of them twice."""

import ctypes
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import Any, TypeVar

import torch

from shared.files import read_json, write_json
from shared.training.checkpoint import StateFolder
from shared.training.device import pick_device
from shared.training.memory import keep_freed_memory

Key = TypeVar("Key")
Result = TypeVar("Result")


def parallel(job: Callable[[Key], Result], keys: Sequence[Key]) -> list[Result]:
    """The results of `job` for every key, in order.

    On the CPU they are computed by forked processes, one a core, with one thread each: for networks too small to keep
    several threads busy that does more work than one process with all threads. On a GPU one after the other, here.

    Args:
        job: a function of a module, or a `functools.partial` of one; its results can be sent between processes.
        keys: what tells the jobs apart; long jobs first leave no core idle at the end.

    Raises:
        Exception: whatever a job raised; jobs that have not begun are then not begun.
    """
    if pick_device().type == "cuda":
        return [job(key) for key in keys]
    # Forked before any kernel has run here, so the children inherit no threads.
    with ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("fork"), _die_with_parent) as pool:
        running = [pool.submit(partial(_alone, job), key) for key in keys]
        try:
            return [each.result() for each in running]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _die_with_parent() -> None:
    """A stage that is killed takes its jobs along: they would hold the locks that its successor needs (Linux only)."""
    if sys.platform == "linux":
        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)


def _alone(job: Callable[[Key], Result], key: Key) -> Result:
    torch.set_num_threads(1)
    keep_freed_memory()
    return job(key)


def remembered(folder: StateFolder, work: Callable[[], Any]) -> Any:
    """What `work` returns, in the types of JSON; kept in the state folder, so that a killed stage does it once only.

    Raises:
        UserError: the folder cannot be written.
    """
    path = folder.folder / "result.json"
    if not path.exists():
        write_json(path, work())
    return read_json(path)
