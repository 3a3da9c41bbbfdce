"""Disks that are full and folders that refuse, for the tests of what is written."""

import os
import resource
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_NOBODY = 65534


@contextmanager
def no_file_above(size: int) -> Iterator[None]:
    """Writing past `size` bytes of a file fails, as on a full disk; Python ignores the signal that comes with it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def forbidden(mode: int) -> Iterator[Path]:
    """A folder with these rights, seen without the privileges of root; it holds `old`, with the text "old"."""
    folder = Path(tempfile.mkdtemp())
    (folder / "old").write_text("old")
    (folder / "old").chmod(0o644)
    folder.chmod(mode)
    root = os.geteuid() == 0
    if root:
        os.seteuid(_NOBODY)  # root may write everywhere
    try:
        yield folder
    finally:
        if root:
            os.seteuid(0)
        folder.chmod(0o755)
        shutil.rmtree(folder)
