"""Fetch data sets: `python -m shared.data.fetch [name ...]`, which is what `make data` runs.

Sets are fetched side by side, each from its sources in the catalogue's order. A file goes to `data/` only whole and
with the right SHA-256, whichever source gave it. What is right already is left alone, so the same command repairs.
Downloads wait in `.downloads/` until their set is complete; an interrupted one goes on where it stopped.
"""

import argparse
import fcntl
import re
import shutil
import sys
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from tqdm import tqdm

from shared.data import manifest, pointer, rebuild, sources, verify
from shared.data.archives import extract, gunzip
from shared.data.catalogue import DataSet, Source, choose, load
from shared.data.manifest import Entry
from shared.data.sources import Failed, Stopped
from shared.errors import UserError, run
from shared.files import write_bytes
from shared.paths import DATA, ROOT

DOWNLOADS = ROOT / ".downloads"
_SIDE_BY_SIDE = 4
#: An archive inside an archive, or a member that is gzipped once more, is read up to this many bytes.
_INNER_LIMIT = 500_000_000


class Refused(Failed):
    """A source answered, but with something else than the catalogue expects."""


@dataclass
class Job:
    """One set on its way: what is still wanted, where it goes, and what happened so far."""

    data_set: DataSet
    wanted: dict[str, Entry]
    folder: Path
    work: Path
    stop: threading.Event
    bar: tqdm
    tried: list[tuple[str, str]] = field(default_factory=list)

    def note(self, text: str) -> None:
        """Show a phrase behind the progress bar."""
        self.bar.set_postfix_str(text)

    def keep(self, path: str, content: bytes) -> None:
        """Store one file of the set if it is the right one.

        Raises:
            Refused: its SHA-256 is not the catalogue's.
        """
        entry, found = self.wanted[path], manifest.describe(content, path)
        if found != entry:
            raise Refused(f"gave another {path}: SHA-256 {found.sha256} ({found.size} bytes), expected {entry.sha256}")
        write_bytes(self.folder / path, content)
        del self.wanted[path]
        self.bar.update(entry.size)


def fetch(
    chosen: list[DataSet], *, folder: Path = DATA, downloads: Path = DOWNLOADS, stop: threading.Event | None = None
) -> None:
    """Bring the sets' files into `folder`; files that are right already are not fetched again.

    Raises:
        UserError: some files could not be had; the message lists every source tried and why it failed.
    """
    stop = stop or threading.Event()
    with _alone(downloads):
        jobs = [job for each in chosen if (job := _job(each, folder, downloads, stop)).wanted]
        try:
            with ThreadPoolExecutor(_SIDE_BY_SIDE) as pool:
                try:
                    list(pool.map(_serve, jobs))
                except BaseException:
                    stop.set()  # Ctrl-C and errors: let the other threads and their clients end, too
                    raise
        finally:
            for job in jobs:
                job.bar.close()
    if failed := [job for job in jobs if job.wanted]:
        raise UserError(_account(failed))


def _job(data_set: DataSet, folder: Path, downloads: Path, stop: threading.Event) -> Job:
    place = folder / data_set.name
    for left in place.rglob(".*.part"):
        left.unlink()  # of a fetch that was killed between two steps
    wanted = {e.path: e for e in data_set.files if verify.fault(data_set.name, e, folder=folder) is not None}
    total = sum(entry.size for entry in wanted.values())
    # Where nobody watches (a log, a pipe) the bars stay away and one line a set is enough.
    hidden = not sys.stderr.isatty() or not wanted
    bar = tqdm(total=total, unit="B", unit_scale=True, desc=f"{data_set.name:<20}", disable=hidden, leave=False)
    return Job(data_set, wanted, place, downloads / data_set.name, stop, bar)


def _serve(job: Job) -> None:
    """Try the sources of one set in order until nothing is wanted any more."""
    count = len(job.wanted)
    for index, source in enumerate(job.data_set.sources):
        if job.stop.is_set():
            return
        work = job.work / f"{index}-{source.kind}"
        leftovers = work.exists() and any(work.iterdir())
        try:
            try:
                _use(job, source, work)
            except Refused:
                if not leftovers:
                    raise
                shutil.rmtree(work)  # what an earlier run left may be the reason: once more from nothing
                _use(job, source, work)
        except Stopped:
            return
        except UserError as error:
            job.tried.append((source.name, str(error)))
        if not job.wanted:
            shutil.rmtree(job.work)
            tqdm.write(f"{job.data_set.name}: {count} files verified, from {source.name}", file=sys.stderr)
            return


def _use(job: Job, source: Source, work: Path) -> None:
    """Take from one source every file that is still wanted."""
    if source.kind == "url" and "{path}" in source.address:
        for path in list(job.wanted):
            target = work / (path + (".gz" if source.gunzip else ""))
            _download(source.address.replace("{path}", path), target, job)
            content = target.read_bytes()
            job.keep(path, _gunzip(content, job.wanted[path].size) if source.gunzip else content)
            target.unlink()
        return
    if source.kind == "url":
        archive = work / source.address.rsplit("/", 1)[1]
        _download(source.address, archive, job)
    else:
        archive = sources.package(source, work, job.note, job.stop)
    if source.sha256 and (found := verify.sha256_of(archive)) != source.sha256:
        raise Refused(f"gave another archive: SHA-256 {found}, expected {source.sha256}")
    job.note("unpacking")
    try:
        for path, content in _unpack(archive, source, job.wanted, work):
            if job.stop.is_set():
                raise Stopped("stopped")
            job.keep(path, content)
    except Failed:
        raise
    except UserError as error:
        raise Refused(str(error)) from None


def _download(url: str, target: Path, job: Job) -> None:
    if not target.exists():
        sources.download(url, target, job.note, job.stop)


def _gunzip(content: bytes, limit: int) -> bytes:
    try:
        return gunzip(content, limit)
    except UserError as error:
        raise Refused(str(error)) from None


def _unpack(archive: Path, source: Source, wanted: Mapping[str, Entry], work: Path) -> Iterator[tuple[str, bytes]]:
    if source.rebuild == "cifar10_png":
        yield from rebuild.cifar10_png(archive, list(wanted.values()))
        return
    outer, _, inner = source.member.rpartition("!")
    if outer:
        nested = work / "inner"
        write_bytes(nested, dict(extract(archive, {outer: _INNER_LIMIT}))[outer])
        archive = nested
    paths = {inner.replace("{path}", path): path for path in wanted}
    limits = {member: _INNER_LIMIT if source.gunzip else wanted[path].size for member, path in paths.items()}
    sizes = {path: entry.size for path, entry in wanted.items()}
    for member, content in extract(archive, limits):
        path = paths[member]
        yield path, gunzip(content, sizes[path]) if source.gunzip else content


@contextmanager
def _alone(downloads: Path) -> Iterator[None]:
    """Two fetches in one checkout would fight over the same parts: the second waits. A killed one holds nothing."""
    try:
        downloads.mkdir(parents=True, exist_ok=True)
        lock = open(downloads / "lock", "w")  # noqa: SIM115 - used as a context below
    except OSError as error:
        raise UserError(f"cannot write to {downloads}: {error.strerror or error}") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("another fetch is running in this checkout; waiting for it", file=sys.stderr)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _account(failed: list[Job]) -> str:
    """The one message about what could not be had, with every source tried and its reason."""
    lines = [f"could not fetch {', '.join(job.data_set.name for job in failed)}; no source gave the files"]
    for job in failed:
        lines.append(f"  {job.data_set.name} ({len(job.wanted)} files missing or damaged), tried in order:")
        lines += [f"    {name}: {reason}" for name, reason in job.tried or [("nothing", "stopped")]]
    only = " ".join(job.data_set.name for job in failed)
    lines.append(
        f'  Connect to the network, or install the clients, and run: make data ONLY="{only}" (what is here is kept)'
    )
    return "\n".join(lines)


def _table(sets: Mapping[str, DataSet], folder: Path) -> str:
    """The catalogue as text: name, files, size, whether it is here, licence, sources in order."""
    rows = [("set", "files", "MB", "here", "licence", "sources in order")]
    for name, each in sets.items():
        faults = [verify.fault(name, entry, folder=folder) for entry in each.files]
        here = "yes" if not any(faults) else f"{faults.count(None)} files" if None in faults else "no"
        hosts = [urlsplit(s.address).netloc if s.kind == "url" else s.name for s in each.sources]
        licence = re.split(r" \(|;", each.licence)[0]
        rows.append((name, str(len(each.files)), f"{each.size / 1e6:.1f}", here, licence, ", ".join(hosts)))
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    return "\n".join(
        "  ".join([*(cell.ljust(w) for cell, w in zip(row, widths, strict=False)), row[5]]) for row in rows
    )


def main() -> None:
    """Command line: fetch, then prove that `data.dvc` matches."""
    parser = argparse.ArgumentParser(prog="python -m shared.data.fetch", description=__doc__.split("\n\n")[0])
    parser.add_argument("names", nargs="*", help="data sets to fetch; all of them when none is named")
    parser.add_argument("--list", action="store_true", help="print the catalogue and what is here, fetch nothing")
    parser.add_argument("--describe", type=Path, metavar="FOLDER", help="print the manifest of a folder, fetch nothing")
    parser.add_argument(
        "--no-proof", action="store_true", help="do not compare with data.dvc (before it is first made)"
    )
    arguments = parser.parse_args()
    sets = {} if arguments.describe else load()
    if arguments.describe:
        print(manifest.render(manifest.describe_folder(arguments.describe)), end="")
    elif arguments.list:
        print(_table(sets, DATA))
    else:
        chosen = choose(sets, arguments.names)
        if not arguments.no_proof and pointer.restore(sets):
            print(
                "data.dvc restored: DVC had rewritten it for a data/ that held some of the sets only", file=sys.stderr
            )
        fetch(chosen)
        if not arguments.no_proof:
            print(pointer.prove(sets), file=sys.stderr)


if __name__ == "__main__":
    run(main)
