"""Weights, curves and metrics survive the way to disk and back; damage is told in one line."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from shared.errors import UserError
from shared.results import Metrics, load_weights, merge, put, read_rows, save_weights, write_metrics, write_rows


def network(width: int = 3) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(2, width, 3), nn.BatchNorm2d(width))


def test_weights_come_back_bit_for_bit(tmp_path: Path) -> None:
    model, other = network().to(memory_format=torch.channels_last), network()
    model(torch.randn(4, 2, 5, 5))  # buffers move
    save_weights(tmp_path / "model.pt", model)
    load_weights(tmp_path / "model.pt", other)
    for name, value in model.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


def test_equal_weights_give_equal_bytes(tmp_path: Path) -> None:
    """Whatever their memory format: else a resumed run could not be compared by its files."""
    model = network()
    save_weights(tmp_path / "a.pt", model)
    save_weights(tmp_path / "b.pt", model.to(memory_format=torch.channels_last))
    assert (tmp_path / "a.pt").read_bytes() == (tmp_path / "b.pt").read_bytes()


class Malicious:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, ("raise SystemExit('code in a weights file was run')",)


def test_bad_weights_are_refused_in_one_line(tmp_path: Path) -> None:
    good, other, cut, code = (tmp_path / name for name in ("good.pt", "other.pt", "cut.pt", "code.pt"))
    save_weights(good, network())
    save_weights(other, network(4))
    cut.write_bytes(good.read_bytes()[:500])
    torch.save(Malicious(), code)
    for path in (tmp_path / "missing.pt", other, cut, code):
        with pytest.raises(UserError, match=r"cannot load weights from .*run the train stage again") as caught:
            load_weights(path, network())
        assert "\n" not in str(caught.value)
        assert path.name in str(caught.value)


def test_rows_come_back(tmp_path: Path) -> None:
    rows = [{"step": 1, "loss": 0.123456789}, {"step": 2, "loss": 1e-9}]
    path = tmp_path / "folder" / "curve.csv"
    write_rows(path, rows)
    assert path.read_text().splitlines()[:2] == ["step,loss", "1,0.123457"]
    for read, written in zip(read_rows(path), rows, strict=True):
        assert read == pytest.approx(written, rel=1e-5)


def test_no_rows(tmp_path: Path) -> None:
    """A run that diverged at once has an empty curve."""
    write_rows(tmp_path / "curve.csv", [])
    assert read_rows(tmp_path / "curve.csv") == []


def test_bad_rows_are_refused(tmp_path: Path) -> None:
    bad = tmp_path / "bad.csv"
    bad.write_text("step,loss\n1,high\n")
    short = tmp_path / "short.csv"
    short.write_text("step,loss\n1\n")
    for path in (bad, short, tmp_path / "missing.csv"):
        with pytest.raises(UserError, match="cannot read numbers from"):
            read_rows(path)


def test_put_and_merge() -> None:
    a: Metrics = {}
    b: Metrics = {}
    put(a, "nll_nats", "base", "seed0", 1.0)
    put(a, "nll_nats", "base", "seed1", 2.0)
    put(b, "nll_nats", "other", "seed0", 3.0)
    put(b, "bytes", "fused", "exact", 4)
    assert merge([a, b]) == {
        "nll_nats": {"base": {"seed0": 1.0, "seed1": 2.0}, "other": {"seed0": 3.0}},
        "bytes": {"fused": {"exact": 4}},
    }
    assert a == {"nll_nats": {"base": {"seed0": 1.0, "seed1": 2.0}}}, "merging leaves its arguments alone"
    with pytest.raises(ValueError, match=r"nll_nats\[base\] has two values for seed0"):
        merge([a, a])


def test_metrics_on_disk(tmp_path: Path) -> None:
    write_metrics(tmp_path / "metrics.json", {"x": {"a": {"exact": 12345678901234, "seed0": 1 / 3}}})
    assert json.loads((tmp_path / "metrics.json").read_text()) == {
        "x": {"a": {"exact": 12345678901234, "seed0": 0.333333333}}
    }


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_metrics_that_are_not_finite_are_refused(tmp_path: Path, value: float) -> None:
    path = tmp_path / "metrics.json"
    with pytest.raises(ValueError, match="not a finite number"):
        write_metrics(path, {"x": {"a": {"seed0": value}}})
    assert not path.exists()
