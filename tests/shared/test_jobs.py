"""Parallel jobs: results in order, one thread each, failures told, and finished work remembered."""

import os
from functools import partial
from pathlib import Path

import pytest
import torch

from shared.training.checkpoint import StateFolder
from shared.training.jobs import parallel, remembered


def describe(offset: int, key: int) -> tuple[int, int, int]:
    return key + offset, torch.get_num_threads(), os.getpid()


def fail_at_three(key: int) -> int:
    if key == 3:
        raise ValueError("three")
    return key


def test_results_come_in_the_order_of_the_keys() -> None:
    results = parallel(partial(describe, 10), range(7))
    assert [value for value, _, _ in results] == [10, 11, 12, 13, 14, 15, 16]
    assert {threads for _, threads, _ in results} == {1}
    assert os.getpid() not in {process for _, _, process in results}


def test_a_failure_is_the_callers() -> None:
    with pytest.raises(ValueError, match="three"):
        parallel(fail_at_three, range(6))


def test_finished_work_is_not_done_again(tmp_path: Path) -> None:
    calls = []

    def work() -> dict[str, float]:
        calls.append(1)
        return {"loss": 0.1 + 0.2}

    for _ in range(2):
        with StateFolder("job", "key", tmp_path) as folder:
            assert remembered(folder, work) == {"loss": 0.1 + 0.2}
    assert len(calls) == 1


def test_a_failed_job_is_not_remembered(tmp_path: Path) -> None:
    def broken() -> int:
        raise RuntimeError("no result")

    with StateFolder("job", "key", tmp_path) as folder:
        with pytest.raises(RuntimeError):
            remembered(folder, broken)
        assert remembered(folder, lambda: 7) == 7
