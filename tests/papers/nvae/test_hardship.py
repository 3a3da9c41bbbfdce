"""The real training program under kill -9, a rival, a full disk and unwritable places, in a copy of the checkout."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from shared.paths import ROOT
from shared.results import read_rows
from tests import checkout
from tests.papers.nvae import tiny

FILES = ("weights/smoke/seed0.pt", "runs/smoke/train/seed0/metrics.json", "runs/smoke/train/seed0/curve.csv")


def copy(target: Path, steps: int) -> Path:
    """The code with the sample of MNIST and a `smoke` preset of the tiny model."""
    without = shutil.ignore_patterns("__pycache__", "runs", "recorded", "weights", "pictures")
    shutil.copytree(ROOT / "shared", target / "shared", ignore=without)
    shutil.copytree(ROOT / "papers" / "nvae", target / "papers" / "nvae", ignore=without)
    shutil.copytree(ROOT / "tests" / "data" / "mnist", target / "data" / "mnist")
    shutil.copy(Path(__file__).with_name("hardship_driver.py"), target)
    block = {**tiny.BASE, "steps": steps, "pre_post": [2, 1], "cells_per_group": [1, 1]}
    lines = [f"  {key}: {value}\n" for key, value in block.items()]
    (target / "papers" / "nvae" / "params.yaml").write_text("smoke:\n" + "".join(lines))
    return target


def drive(folder: Path, action: str) -> dict[str, Any]:
    """What hardship_driver.py tells."""
    done = checkout.run(folder, "python", "hardship_driver.py", action, timeout=300)
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


@pytest.mark.slow
def test_killed_again_and_again_a_resumed_run_ends_in_the_same_bits(tmp_path: Path) -> None:
    folder = copy(tmp_path / "checkout", steps=40)
    told = drive(folder, "kills")
    assert told["status"] == 0, told
    assert told["killed"] == 5
    assert told["states"] == [], "the state is deleted after success"
    assert told["refused"]["status"] == 1
    assert told["refused"]["errors"] == 1
    assert "another process is training the same run" in told["refused"]["error"]
    assert not told["refused"]["traceback"]

    paper = folder / "papers" / "nvae"
    provenance = paper / "runs" / "smoke" / "provenance" / "train-seed0.json"
    assert json.loads(provenance.read_text())["interruptions"] == 5
    interrupted = {name: (paper / name).read_bytes() for name in FILES}
    shutil.rmtree(paper / "runs")
    shutil.rmtree(paper / "weights")
    checkout.run(folder, "python", "-m", "papers.nvae.train", "--preset", "smoke", "--seed", "0", timeout=300)
    assert json.loads(provenance.read_text())["interruptions"] == 0
    for name in FILES:
        assert (paper / name).read_bytes() == interrupted[name], f"{name} differs"
    assert read_rows(paper / "runs/smoke/train/seed0/curve.csv")[-1]["step"] == 40


@pytest.mark.slow
def test_troubles_end_in_one_line_with_the_state_kept(tmp_path: Path) -> None:
    told = drive(copy(tmp_path / "checkout", steps=6), "troubles")
    expected = {"full": "cannot write", "results": "cannot write", "states": "cannot keep state in"}
    for trouble, text in expected.items():
        answer = told[trouble]
        assert not answer["traceback"], f"{trouble}: a traceback instead of a line"
        assert (answer["status"], answer["errors"]) == (1, 1), f"{trouble}: {answer}"
        assert text in answer["error"]
        assert answer["state kept"], trouble
    assert told["well"]["status"] == 0
