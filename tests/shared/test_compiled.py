"""Compilation: found out by trying, told in one line, and never a reason to stop."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from shared.training import compiled


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    compiled.can_compile.cache_clear()
    yield
    compiled.can_compile.cache_clear()


def test_without_a_compiler_one_line_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:  # type: ignore[type-arg]
    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("no C++ compiler\nfound\nand a long story")

    monkeypatch.setattr(torch, "compile", broken)
    assert not compiled.can_compile(torch.device("cpu"))
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "no C++ compiler" in told
    assert "g++" in told


def test_it_is_tried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []
    monkeypatch.setattr(torch, "compile", lambda function, **_: tried.append(function) or function)
    assert compiled.can_compile(torch.device("cpu"))
    assert compiled.can_compile(torch.device("cpu"))
    assert len(tried) == 1


def test_only_where_it_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not compiled.can_compile(torch.device("cuda"))
    monkeypatch.setattr(compiled, "world_size", lambda: 2)
    assert not compiled.can_compile(torch.device("cpu"))
