"""Take single files out of tar, zip and Debian archives, without ever writing to a path that an archive names.

The content goes to the caller as bytes; where it is stored is the catalogue's choice. Still, an archive with an
absolute name or a `..` in it is refused, a wanted member must be an ordinary file, and no more is read than the
catalogue expects, so that a small archive cannot unpack into a full disk.
"""

import gzip
import io
import lzma
import shutil
import subprocess
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO

from shared.errors import UserError

_AR_MAGIC = b"!<arch>\n"
_AR_HEADER = 60
_DAMAGE = (tarfile.TarError, zipfile.BadZipFile, lzma.LZMAError, zlib.error, EOFError, OSError, NotImplementedError)


def extract(archive: Path, wanted: Mapping[str, int]) -> Iterator[tuple[str, bytes]]:
    """Yield (member, content) for every wanted member, in the archive's order.

    Args:
        archive: a tar (plain, gz, bz2, xz), a zip or a Debian package; told by its first bytes, not by its name.
        wanted: member name (without a leading `./`) to the most bytes it may hold.

    Raises:
        UserError: the archive is damaged, lacks a wanted member, holds one twice or as a link, one is larger than its
            limit, or any member's name is absolute or contains `..`.
    """
    missing = dict(wanted)
    try:
        with open(archive, "rb") as file:
            magic = file.read(len(_AR_MAGIC))
        if magic.startswith(b"PK"):
            members = _zip_members(archive, missing)
        elif magic == _AR_MAGIC:
            members = _deb_members(archive, missing)
        else:
            members = _tar_members(archive, missing)
        for name, content in members:
            if len(content) > missing.pop(name):
                raise UserError(
                    f"{archive.name}: {name} is larger than the {wanted[name]} bytes that the catalogue expects"
                )
            yield name, content
    except _DAMAGE as error:
        raise UserError(f"{archive.name} is damaged or no archive: {str(error) or type(error).__name__}") from None
    if missing:
        raise UserError(f"{archive.name} does not hold {', '.join(sorted(missing)[:3])}")


def gunzip(content: bytes, limit: int) -> bytes:
    """Unpack a gzip stream of at most `limit` bytes.

    Raises:
        UserError: the stream is damaged or longer.
    """
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(content)) as stream:
            data = stream.read(limit + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"not a whole gzip stream: {error}") from None
    if len(data) > limit:
        raise UserError(f"the gzip stream is longer than the {limit} bytes that the catalogue expects")
    return data


def _checked(name: str, archive: Path) -> str:
    """The member's plain name; refuses names that would leave the folder they are unpacked in."""
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or (path.parts and path.parts[0].endswith(":")):
        raise UserError(
            f"{archive.name} is refused: its member {name!r} points outside the folder it would be unpacked in"
        )
    return str(path)


def _zip_members(archive: Path, wanted: Mapping[str, int]) -> Iterator[tuple[str, bytes]]:
    with zipfile.ZipFile(archive) as file:
        infos = [(_checked(info.filename, archive), info) for info in file.infolist()]
        found = [(name, info) for name, info in infos if name in wanted]
        if len({name for name, _ in found}) < len(found):
            raise UserError(f"{archive.name} is refused: it holds a wanted member twice")
        for name, info in found:
            kind = info.external_attr >> 28  # the file type of the Unix mode; 0 where the maker gave none
            if info.is_dir() or kind not in (0, 8):
                raise UserError(f"{archive.name} is refused: its member {name} is no ordinary file")
            with file.open(info) as stream:
                yield name, stream.read(wanted[name] + 1)


def _tar_members(archive: Path, wanted: Mapping[str, int]) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(archive, mode="r:*") as file:
        yield from _read_tar(file, archive, wanted)


def _read_tar(file: tarfile.TarFile, archive: Path, wanted: Mapping[str, int]) -> Iterator[tuple[str, bytes]]:
    seen: set[str] = set()
    for member in file:
        name = _checked(member.name, archive)
        if name in seen:
            raise UserError(f"{archive.name} is refused: it holds {name} twice")
        if name not in wanted:
            continue
        stream = file.extractfile(member) if member.isreg() else None
        if stream is None:
            raise UserError(f"{archive.name} is refused: its member {name} is a link or no ordinary file")
        seen.add(name)
        yield name, stream.read(wanted[name] + 1)


def _deb_members(archive: Path, wanted: Mapping[str, int]) -> Iterator[tuple[str, bytes]]:
    with open(archive, "rb") as file, _deb_tar(file, archive) as tar:
        yield from _read_tar(tar, archive, wanted)


@contextmanager
def _deb_tar(file: IO[bytes], archive: Path) -> Iterator[tarfile.TarFile]:
    """The tar of a Debian package's files: an `ar` archive holds it as `data.tar.xz`, `.gz`, `.zst` ..."""
    file.seek(len(_AR_MAGIC))
    while header := file.read(_AR_HEADER):
        if len(header) < _AR_HEADER or header[58:] != b"`\n" or not header[48:58].strip().isdigit():
            raise UserError(f"{archive.name} is damaged: its table of contents cannot be read")
        name, size = header[:16].rstrip().rstrip(b"/"), int(header[48:58])
        if name == b"data.tar.zst":
            with _deb_tar_by_dpkg(archive) as tar:
                yield tar
            return
        if name.startswith(b"data.tar"):
            # Streaming: the whole package is unpacked once, in order, and never held in memory.
            with tarfile.open(fileobj=file, mode="r|*") as tar:
                yield tar
            return
        file.seek(size + size % 2, io.SEEK_CUR)
    raise UserError(f"{archive.name} is no Debian package: it has no data.tar")


@contextmanager
def _deb_tar_by_dpkg(archive: Path) -> Iterator[tarfile.TarFile]:
    """Python 3.11 cannot unpack zstd, in which newer Ubuntu packages come; dpkg can."""
    if shutil.which("dpkg-deb") is None:
        raise UserError(f"{archive.name} is packed with zstd, which needs the program dpkg-deb: it is not installed")
    command = ["dpkg-deb", "--fsys-tarfile", str(archive)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        try:
            with tarfile.open(fileobj=process.stdout, mode="r|") as tar:
                yield tar
        finally:
            process.kill()
