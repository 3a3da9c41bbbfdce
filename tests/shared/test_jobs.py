"""Parallel jobs: results in order, one thread each, failures told, and finished work remembered."""

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch

from shared.paths import ROOT
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


SLEEPERS = """
import os, sys, time
from pathlib import Path
from shared.training.jobs import parallel
def sleep(key):
    Path(sys.argv[1], str(os.getpid())).touch()
    time.sleep(60)
parallel(sleep, range(os.cpu_count()))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child that its parent has died")
def test_a_killed_stage_takes_its_jobs_along(tmp_path: Path) -> None:
    stage = subprocess.Popen([sys.executable, "-c", SLEEPERS, str(tmp_path)], cwd=ROOT)
    until = time.monotonic() + 60
    while len(list(tmp_path.iterdir())) < (os.cpu_count() or 1) and time.monotonic() < until:
        time.sleep(0.05)
    children = [int(path.name) for path in tmp_path.iterdir()]
    assert children
    os.kill(stage.pid, signal.SIGKILL)
    stage.wait()
    until = time.monotonic() + 10
    while any(running(child) for child in children) and time.monotonic() < until:
        time.sleep(0.05)
    assert not any(running(child) for child in children)


def running(process: int) -> bool:
    """Whether a process exists and is more than a dead one that nobody has asked about."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False
