"""The state of a run: named by its ingredients, held by one process, written whole, never unpickled."""

import io
import multiprocessing
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest
import torch

from shared.errors import UserError
from shared.training.checkpoint import StateFolder, digest, discard
from tests.shared.hardship import forbidden, no_file_above

INGREDIENTS = {"code": "abc", "settings": {"steps": 3, "rate": 0.1}, "data": "d", "seed": 0}


def test_digest_names_a_run() -> None:
    again = {"seed": 0, "data": "d", "settings": {"rate": 0.1, "steps": 3}, "code": "abc"}
    assert digest(**INGREDIENTS) == digest(**again)
    changes = ({"code": "abd"}, {"settings": {"steps": 4, "rate": 0.1}}, {"data": "e"}, {"seed": 1}, {"more": None})
    assert len({digest(**INGREDIENTS), *(digest(**{**INGREDIENTS, **change}) for change in changes)}) == 6


def test_state_comes_back_bit_for_bit(tmp_path: Path) -> None:
    state = {"step": 3, "rows": [{"a": 0.1}], "state": {"w": torch.randn(3, 4), "flag": torch.tensor(True)}}
    with StateFolder("run", "key", tmp_path) as folder:
        assert folder.load() is None
        folder.save(state)
    with StateFolder("run", "key", tmp_path) as folder:
        loaded = folder.load()
    assert loaded is not None
    assert torch.equal(loaded["state"]["w"], state["state"]["w"])  # type: ignore[index]
    assert loaded["rows"] == state["rows"]


def test_another_key_finds_nothing(tmp_path: Path) -> None:
    with StateFolder("run", digest(**INGREDIENTS), tmp_path) as folder:
        folder.save({"step": 1})
    with StateFolder("run", digest(**{**INGREDIENTS, "seed": 1}), tmp_path) as folder:
        assert folder.load() is None


def test_discard_leaves_nothing(tmp_path: Path) -> None:
    with StateFolder("run", "key", tmp_path) as folder:
        folder.save({"step": 1})
        folder.discard()
    assert list(tmp_path.iterdir()) == []
    discard(tmp_path / "never was")


def _hold(root: Path, ready: Event) -> None:
    with StateFolder("run", "key", root):
        ready.set()
        multiprocessing.Event().wait()


def test_one_process_at_a_time_and_a_killed_one_lets_go(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    holder = context.Process(target=_hold, args=(tmp_path, ready))
    holder.start()
    try:
        assert ready.wait(60)
        with pytest.raises(UserError, match="another process is training the same run and holds") as caught:
            StateFolder("run", "key", tmp_path).__enter__()
        assert "\n" not in str(caught.value)
        with StateFolder("run", "key", tmp_path, lock=False) as follower:  # ranks above 0 only read
            assert follower.load() is None
        with StateFolder("run", "other", tmp_path):
            pass
    finally:
        holder.kill()
        holder.join()
    with StateFolder("run", "key", tmp_path) as folder:
        folder.save({"step": 1})


def test_full_disk_keeps_the_state_before(tmp_path: Path) -> None:
    with StateFolder("run", "key", tmp_path) as folder:
        folder.save({"step": 1})
        with no_file_above(20_000), pytest.raises(UserError, match=r"cannot write .*state.pt.*previous file is kept"):
            folder.save({"step": 2, "w": torch.zeros(100_000)})
        assert folder.load() == {"step": 1}


def test_unwritable_place_is_one_line() -> None:
    with forbidden(0o555) as root, pytest.raises(UserError, match="cannot keep state in") as caught:
        StateFolder("run", "key", root).__enter__()
    assert "Permission denied" in str(caught.value)


def test_file_in_the_place_of_the_states(tmp_path: Path) -> None:
    (tmp_path / ".ckpt").write_text("")
    with pytest.raises(UserError, match="cannot keep state in"):
        StateFolder("run", "key", tmp_path / ".ckpt").__enter__()


class Malicious:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, ("raise SystemExit('code in a state file was run')",)


def with_code() -> bytes:
    """A file that would run code if it were unpickled."""
    buffer = io.BytesIO()
    torch.save(Malicious(), buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("content", [b"", b"half a state", with_code()])
def test_damaged_state_is_one_line(tmp_path: Path, content: bytes) -> None:
    with StateFolder("run", "key", tmp_path) as folder:
        folder.file.write_bytes(content)
        with pytest.raises(UserError, match=r"cannot be read .*delete that folder and run again") as caught:
            folder.load()
    assert "\n" not in str(caught.value)
