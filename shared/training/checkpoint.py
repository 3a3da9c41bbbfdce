"""State for resuming: one folder a run, named by all the run depends on, written whole, locked, deleted at the end."""

import hashlib
import io
import json
import shutil
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from filelock import FileLock, Timeout

from shared.errors import UserError
from shared.files import write_bytes
from shared.paths import ROOT

STATES = ROOT / ".ckpt"


def digest(**ingredients: Any) -> str:
    """A name for a run: a hash over everything that decides its outcome (code, settings, data, seed, device)."""
    text = json.dumps(ingredients, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


class StateFolder:
    """`.ckpt/<name>-<digest>/`, held by one process at a time; use it in a `with` block.

    A changed ingredient gives another folder, so old state is never picked up by mistake. The lock is the operating
    system's: a killed process loses it, a second trainer of the same run is refused.

    Args:
        name: readable beginning of the folder's name, e.g. "nvae-train-seed0".
        key: the `digest` of the run.
        lock: False in processes other than the first of a group: they read the state and never write it.

    Raises:
        UserError: another process holds the folder, or it cannot be made.
    """

    def __init__(self, name: str, key: str, root: Path = STATES, lock: bool = True) -> None:
        self.folder = root / f"{name}-{key}"
        self.file = self.folder / "state.pt"
        self._lock = FileLock(self.folder / "lock", timeout=0) if lock else None

    def __enter__(self) -> "StateFolder":
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if self._lock is not None:
                self._lock.acquire()
        except Timeout:
            raise UserError(
                f"another process is training the same run and holds {self.folder}: wait for it or stop it, "
                "then run the command again"
            ) from None
        except OSError as error:
            raise UserError(
                f"cannot keep state in {self.folder}: {error.strerror or error}; mend that and run again"
            ) from None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._lock is not None:
            self._lock.release()

    def save(self, state: dict[str, Any]) -> None:
        """Write the state whole or not at all; `UserError` on a full disk, with the previous state kept."""
        buffer = io.BytesIO()
        torch.save(state, buffer)
        write_bytes(self.file, buffer.getvalue())

    def load(self, device: torch.device | str = "cpu") -> dict[str, Any] | None:
        """The state saved last, or None; `UserError` if it cannot be read (it is never unpickled)."""
        if not self.file.exists():
            return None
        try:
            state: dict[str, Any] = torch.load(self.file, map_location=device, weights_only=True)
        except Exception as error:  # noqa: BLE001  torch raises many kinds for a damaged file
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(
                f"the state in {self.file} cannot be read ({reason}): delete that folder and run again"
            ) from None
        return state

    def discard(self) -> None:
        """Delete the state after success; the lock stays until the `with` block ends."""
        discard(self.folder)


def discard(folder: Path) -> None:
    """Delete a state folder that nobody trains in any more."""
    shutil.rmtree(folder, ignore_errors=True)
