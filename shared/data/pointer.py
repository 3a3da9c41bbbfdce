"""Prove that `data.dvc`, the catalogue and the files in `data/` say the same.

DVC names a folder by the MD5 of a listing of its files. The catalogue knows every file's MD5, so it can compute that
name without the files, and a partial fetch can be proved right as well.
"""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from shared.data import verify
from shared.data.catalogue import DataSet
from shared.errors import UserError
from shared.files import write_text
from shared.paths import DATA, ROOT

PATH = ROOT / "data.dvc"
#: What `.dvcignore` keeps out of the listing as well.
_IGNORED_SUFFIXES = (".part", ".pyc")
_IGNORED_NAMES = (".DS_Store", "Thumbs.db")


class Pointer(msgspec.Struct, frozen=True):
    """What `data.dvc` records of the folder: DVC's name for it, its bytes and its number of files."""

    md5: str
    size: int
    nfiles: int


class _Document(msgspec.Struct):
    outs: list[Pointer]


def directory_md5(files: Iterable[tuple[str, str]]) -> str:
    """DVC's name of a folder from its files, given as (relative path, MD5): the MD5 of a sorted JSON listing."""
    listing = [{"md5": md5, "relpath": path} for path, md5 in sorted(files)]
    return hashlib.md5(json.dumps(listing, sort_keys=True).encode(), usedforsecurity=False).hexdigest() + ".dir"


def expected(sets: Mapping[str, DataSet]) -> Pointer:
    """The pointer that the catalogue's files must have."""
    files = [(f"{name}/{entry.path}", entry.md5) for name, each in sets.items() for entry in each.files]
    return Pointer(directory_md5(files), sum(each.size for each in sets.values()), len(files))


def recorded(path: Path = PATH) -> Pointer:
    """The pointer in a `.dvc` file.

    Raises:
        UserError: the file is missing or is no pointer to one folder.
    """
    try:
        document = msgspec.convert(YAML(typ="safe").load(path.read_text(encoding="utf-8")), _Document)
    except FileNotFoundError:
        raise UserError(
            f"{path} is missing: git checkout {path.name}, or make it with `dvc add --no-commit data`"
        ) from None
    except (OSError, YAMLError, msgspec.ValidationError) as error:
        raise UserError(f"{path} is no DVC pointer: {' '.join(str(error).split())}") from None
    if len(document.outs) != 1:
        raise UserError(f"{path} must point to the one folder data/, it has {len(document.outs)} outs")
    return document.outs[0]


def restore(sets: Mapping[str, DataSet], *, folder: Path = DATA, pointer: Path = PATH) -> bool:
    """Write the catalogue's pointer back where DVC has replaced it, and tell whether that was so.

    `dvc repro` of a stage that depends on a file in `data/` rewrites the pointer when only some sets are here. That is
    the only case mended: the recorded name must be the one of the catalogued files found in `folder`.
    """
    if not pointer.exists() or (have := recorded(pointer)) == (want := expected(sets)):
        return False
    here = [
        (name, entry)
        for name, each in sets.items()
        for entry in each.files
        if verify.fault(name, entry, folder=folder) is None
    ]
    part = Pointer(
        directory_md5((f"{name}/{entry.path}", entry.md5) for name, entry in here),
        sum(entry.size for _, entry in here),
        len(here),
    )
    if have != part:
        return False
    text = pointer.read_text(encoding="utf-8")
    for old, new in ((part.md5, want.md5), (f"size: {part.size}", f"size: {want.size}")):
        text = text.replace(old, new)
    write_text(pointer, text.replace(f"nfiles: {part.nfiles}", f"nfiles: {want.nfiles}"))
    return True


def prove(sets: Mapping[str, DataSet], *, folder: Path = DATA, pointer: Path = PATH) -> str:
    """Check the pointer against the catalogue, every fetched file against its SHA-256, and DVC's own opinion.

    Returns:
        One line that says what was proved.

    Raises:
        UserError: the first disagreement found, and what to do.
    """
    want, have = expected(sets), recorded(pointer)
    if have != want:
        raise UserError(
            f"{pointer.name} records {have.md5} ({have.nfiles} files, {have.size} bytes), the catalogue {want.md5} "
            f"({want.nfiles} files, {want.size} bytes); DVC rewrites it when it runs over a data/ with other files: "
            f"`git checkout {pointer.name}`"
        )
    known = {f"{name}/{entry.path}" for name, each in sets.items() for entry in each.files}
    present = {path.relative_to(folder).as_posix() for path in _files(folder)}
    if strays := sorted(present - known):
        raise UserError(
            f"data/ holds {len(strays)} files that are not in the catalogue ({strays[0]} ...): move them away"
        )
    for name, each in sets.items():
        for entry in each.files:
            if f"{name}/{entry.path}" in present and (reason := verify.fault(name, entry, folder=folder)):
                raise UserError(f"{reason}; repair it with `make data ONLY={name}`")
    checked = f"{len(present)} of {len(known)} files verified"
    if present != known:
        whole = [name for name, each in sets.items() if all(f"{name}/{e.path}" in present for e in each.files)]
        return f"{pointer.name} matches the catalogue; {checked} ({len(whole)} of {len(sets)} sets fetched)"
    _ask_dvc(pointer)
    return f"{pointer.name} matches the catalogue and DVC finds data/ unchanged; {checked}, {want.size / 1e6:.0f} MB"


def _files(folder: Path) -> Iterable[Path]:
    for place, _, names in os.walk(folder):
        for name in names:
            if not name.endswith(_IGNORED_SUFFIXES) and name not in _IGNORED_NAMES:
                yield Path(place, name)


def _ask_dvc(pointer: Path) -> None:
    environment = os.environ | {"DVC_NO_ANALYTICS": "1"}
    command = [sys.executable, "-m", "dvc", "status", "--json", pointer.name]
    done = subprocess.run(command, cwd=pointer.parent, env=environment, capture_output=True, text=True)
    if done.returncode or json.loads(done.stdout or "{}"):
        words = " ".join((done.stderr if done.returncode else done.stdout).split())
        raise UserError(f"`dvc status {pointer.name}` disagrees although every file is as catalogued: {words}")
