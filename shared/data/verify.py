"""Nothing is read from `data/` before its SHA-256 has been compared with the catalogue.

A file is hashed once per state: path, size, inode and both time stamps are remembered with the digest in
`.ckpt/verified.sqlite3`, so the second look costs a `stat`. Losing that file costs only time.
"""

import hashlib
import os
import sqlite3
import time
from collections.abc import Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Literal

from shared.data import manifest
from shared.data.manifest import Entry
from shared.errors import UserError
from shared.paths import DATA, ROOT

Profile = Literal["full", "sample"]

MEMORY = ROOT / ".ckpt" / "verified.sqlite3"
#: Two writes within one tick of the file system's clock look alike, so a file this young is not remembered.
_YOUNG_NS = 50_000_000
_MISSING = " is missing"
_SAMPLE = " is the small test sample, not the real data"
_TABLE = "create table if not exists digests (path text primary key, state text not null, sha256 text not null)"


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file as it is now, from memory when its state is unchanged.

    Raises:
        OSError: the file is missing or cannot be read.
    """
    key, before = str(path.resolve()), _state(path.stat())
    if (known := _recall(key, before)) is not None:
        return known
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        after = os.fstat(file.fileno())
    if _state(after) == before and time.time_ns() - after.st_ctime_ns > _YOUNG_NS:
        _remember(key, before, digest)
    return digest


def _state(status: os.stat_result) -> str:
    return f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns} {status.st_ino}"


def _recall(key: str, state: str) -> str | None:
    if not MEMORY.exists():
        return None
    try:
        with closing(sqlite3.connect(MEMORY, timeout=10)) as memory:
            row = memory.execute("select sha256 from digests where path = ? and state = ?", (key, state)).fetchone()
    except sqlite3.Error:
        return None
    return str(row[0]) if row else None


def _remember(key: str, state: str, digest: str) -> None:
    try:
        MEMORY.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(MEMORY, timeout=10)) as memory, memory:
            memory.execute("pragma synchronous = off")
            memory.execute(_TABLE)
            memory.execute("insert or replace into digests values (?, ?, ?)", (key, state, digest))
    except (OSError, sqlite3.Error):
        # A read-only checkout or a broken memory must not stop a reader: the next look hashes again.
        with suppress(OSError):
            MEMORY.unlink(missing_ok=True)


def fault(name: str, entry: Entry, *, folder: Path = DATA) -> str | None:
    """What is wrong with one file of the set `name` under `folder`, in words; None when it is as catalogued."""
    path = folder / name / entry.path
    shown = _shown(path)
    try:
        size = path.stat().st_size
        found = sha256_of(path)
    except FileNotFoundError:
        return shown + _MISSING
    except OSError as error:
        return f"{shown} cannot be read ({error.strerror or error})"
    if found == entry.sha256:
        return None
    for other in manifest.read(name):
        if other.sha256 == found:
            return f"{shown} holds what belongs in {other.path}: its SHA-256 is {found}, expected {entry.sha256}"
    if any(small.sha256 == found for small in manifest.read(name, sample=True)):
        return shown + _SAMPLE
    sizes = f"{size} bytes, expected {entry.size}" if size != entry.size else f"{size} bytes as expected"
    return f"{shown} is damaged or another file: its SHA-256 is {found} ({sizes}), expected {entry.sha256}"


def check(name: str, paths: Sequence[str] | None = None, *, folder: Path = DATA, allow_sample: bool = False) -> Profile:
    """Check files of the set `name` (all of them when `paths` is None) and say which profile they belong to.

    Args:
        name: the set, which is also the folder's name under `folder`.
        paths: relative to the set's folder, as in its manifest.
        folder: what stands for `data/`.
        allow_sample: accept the set's test sample in place of the real data.

    Raises:
        UserError: a file is missing, damaged, swapped, or a sample where the real data are asked for.
    """
    reason = _first_fault(name, manifest.read(name), paths, folder)
    if reason is None:
        return "full"
    small = manifest.read(name, sample=True) if allow_sample else ()
    if small and _first_fault(name, small, paths, folder) is None:
        return "sample"
    repair = f"`make data ONLY={name}`"
    if reason.endswith(_SAMPLE):
        raise UserError(f"{reason}, and only tests may use it (allow_sample=True); fetch the real data with {repair}")
    raise UserError(f"{reason}; {'fetch' if reason.endswith(_MISSING) else 'repair'} it with {repair}")


def _first_fault(name: str, entries: Sequence[Entry], paths: Sequence[str] | None, folder: Path) -> str | None:
    known = {entry.path: entry for entry in entries}
    for path in known if paths is None else paths:
        if path not in known:
            return f"{_shown(folder / name / path)} is not in the catalogue"
        if (reason := fault(name, known[path], folder=folder)) is not None:
            return reason
    return None


def verified(path: Path, *, folder: Path = DATA, allow_sample: bool = False) -> Path:
    """The same path, once the file below `folder` has been found as catalogued; for raises see `check`."""
    try:
        relative = path.resolve().relative_to(folder.resolve())
    except ValueError:
        raise UserError(f"{path} is not below {folder}, so the catalogue cannot vouch for it") from None
    if len(relative.parts) < 2:
        raise UserError(f"{path} is not a file of a data set: expected {folder}/<set>/<file>")
    check(relative.parts[0], [Path(*relative.parts[1:]).as_posix()], folder=folder, allow_sample=allow_sample)
    return path


def files(name: str, *, folder: Path = DATA, allow_sample: bool = False) -> dict[str, Path]:
    """All files of a set, each verified, by their path inside it; for raises see `check`."""
    profile = check(name, folder=folder, allow_sample=allow_sample)
    return {entry.path: folder / name / entry.path for entry in manifest.read(name, sample=profile == "sample")}


def _shown(path: Path) -> str:
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)
