"""Run in a copy of the checkout by test_hardship.py: trains in forked processes, kills them, tells what happened.

The processes are forks, so that torch is imported once and a kill can come at any moment of the training itself.
Everything else is the real program; only the seconds between saves are fewer.
"""

import functools
import json
import os
import random
import resource
import shutil
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from papers.nvae import experiment
from papers.nvae import train as program
from shared import errors
from shared.paths import ROOT, runs
from shared.training.checkpoint import STATES

ARGUMENTS = ["train", "--preset", "smoke", "--seed", "0"]
KILLS = 5


def start(log: Path, most_bytes: int | None = None) -> int:
    """The trainer in a process of its own that writes to `log`; its id."""
    child = os.fork()
    if child:
        return child
    sys.argv = ARGUMENTS
    program.train = functools.partial(experiment.train, save_seconds=-1.0)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    if most_bytes is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))
    status = 99
    try:
        errors.run(program.main)
        status = 0
    except SystemExit as stop:
        status = int(stop.code or 0)
    except BaseException:
        traceback.print_exc()  # os._exit below would lose it
        raise
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def finish(child: int) -> int:
    """Wait; the exit status, or minus the signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def saved() -> int:
    """A number that changes with every save; 0 without a state."""
    states = list(STATES.glob("*/state.pt"))
    return states[0].stat().st_mtime_ns if states else 0


def told(log: Path) -> dict[str, Any]:
    """The error line of a log, how many there are, and whether a traceback stands beside it."""
    text = log.read_text().replace("\r", "\n")
    lines = [line for line in text.splitlines() if line.startswith("error:")]
    return {"error": lines[-1] if lines else "", "errors": len(lines), "traceback": "Traceback" in text}


def kills(log: Path) -> dict[str, Any]:
    """Kill the trainer at random moments, meet it with a second one, let a last one finish."""
    moments = random.Random()
    killed, refused = 0, {}
    while killed < KILLS:
        before, child = saved(), start(log)
        while saved() == before:
            if os.waitpid(child, os.WNOHANG)[0]:
                return {"killed": killed, "log": log.read_text()}
            time.sleep(0.002)
        if not refused:
            second = log.with_suffix(".second")
            refused = {"status": finish(start(second)), **told(second)}
        time.sleep(moments.uniform(0, 0.15))
        os.kill(child, signal.SIGKILL)
        killed += finish(child) == -signal.SIGKILL
    status = finish(start(log))
    return {
        "killed": killed,
        "refused": refused,
        "status": status,
        "states": sorted(path.name for path in STATES.glob("nvae-*")),
    }


def troubles(log: Path) -> dict[str, Any]:
    """A full disk, a place for states that is a file, a place for results that is a file; then all is well again."""
    result: dict[str, Any] = {}
    child = start(log)
    while not saved():
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    finish(child)
    size = next(STATES.glob("*/state.pt")).stat().st_size
    state = saved()
    result["full"] = {"status": finish(start(log, size // 2)), **told(log), "state kept": saved() == state}

    results = runs("nvae", "smoke")
    results.parent.write_text("a file where a folder should be")
    result["results"] = {"status": finish(start(log)), **told(log), "state kept": saved() > 0}
    results.parent.unlink()

    aside = ROOT / "aside"
    STATES.rename(aside)
    STATES.write_text("a file where a folder should be")
    result["states"] = {"status": finish(start(log)), **told(log), "state kept": True}
    STATES.unlink()
    aside.rename(STATES)

    result["well"] = {"status": finish(start(log))}
    shutil.rmtree(STATES)
    return result


if __name__ == "__main__":
    answer = {"kills": kills, "troubles": troubles}[sys.argv[1]](ROOT / "log")
    print(json.dumps(answer))
