"""The list of a data set's files: path, size, SHA-256 and MD5, one tab-separated file a set.

`manifests/<set>.tsv` describes the whole set, `manifests/<set>.sample.tsv` the small sample that tests use instead.
SHA-256 is what files are checked against; MD5 is there because DVC's pointer to the folder is made of it.
"""

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

import msgspec

from shared.errors import UserError

FOLDER = Path(__file__).parent / "manifests"
HEADER = "sha256\tmd5\tbytes\tpath"
_LINE = re.compile(r"(?P<sha256>[0-9a-f]{64})\t(?P<md5>[0-9a-f]{32})\t(?P<size>[0-9]+)\t(?P<path>[^\t]+)")


class Entry(msgspec.Struct, frozen=True):
    """One file of a set; `path` is relative to the set's folder, with forward slashes; `size` is in bytes."""

    path: str
    size: int
    sha256: str
    md5: str


def safe_path(text: str) -> bool:
    """Whether `text` is a plain relative path: not absolute, no `..`, no backslash, nothing to clean up."""
    path = PurePosixPath(text)
    return (
        bool(path.parts)
        and not path.is_absolute()
        and ".." not in path.parts
        and "\\" not in text
        and str(path) == text
    )


def parse(text: str, name: str) -> tuple[Entry, ...]:
    """Read a manifest's text; `name` is what to call it in a message.

    Raises:
        UserError: a line is malformed, a path leaves the folder, or a path stands twice.
    """
    lines = text.splitlines()
    if not lines or lines[0] != HEADER:
        raise UserError(f"{name}: the first line must be the column names, {HEADER.split()}")
    entries: dict[str, Entry] = {}
    for number, line in enumerate(lines[1:], start=2):
        match = _LINE.fullmatch(line)
        if match is None or not safe_path(match["path"]) or match["path"] in entries:
            raise UserError(f"{name}, line {number}: not a checksum line with a new, plain relative path: {line!r}")
        entries[match["path"]] = Entry(match["path"], int(match["size"]), match["sha256"], match["md5"])
    return tuple(entries.values())


def render(entries: Iterable[Entry]) -> str:
    """The text that `parse` reads, ordered by path."""
    rows = (f"{e.sha256}\t{e.md5}\t{e.size}\t{e.path}" for e in sorted(entries, key=lambda e: e.path))
    return "\n".join([HEADER, *rows]) + "\n"


def read(name: str, *, sample: bool = False) -> tuple[Entry, ...]:
    """The files of the set `name`, or of its sample; a set without a sample has an empty one.

    Raises:
        UserError: there is no such set, or its manifest is malformed.
    """
    path = FOLDER / (f"{name}.sample.tsv" if sample else f"{name}.tsv")
    if sample and not path.exists() and (FOLDER / f"{name}.tsv").exists():
        return ()
    try:
        return parse(path.read_text(encoding="utf-8"), path.name)
    except OSError:
        raise UserError(
            f"the catalogue knows no data set {name!r}; `make data` fetches: {', '.join(names())}"
        ) from None


def names() -> tuple[str, ...]:
    """The sets that have a manifest, in alphabetic order."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.tsv") if not path.stem.endswith(".sample")))


def describe(content: bytes, path: str) -> Entry:
    """The entry of a file that holds `content`."""
    md5 = hashlib.md5(content, usedforsecurity=False).hexdigest()
    return Entry(path, len(content), hashlib.sha256(content).hexdigest(), md5)


def describe_folder(folder: Path) -> tuple[Entry, ...]:
    """The entries of all files below `folder`: how a maintainer makes a manifest (`fetch --describe`)."""
    found = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return tuple(describe(path.read_bytes(), path.relative_to(folder).as_posix()) for path in found)
