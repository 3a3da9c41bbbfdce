"""Get a file or a package from where it is published: by URL, with resume, or with the pip, npm or apt client."""

import http.client
import importlib.util
import os
import re
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from shared.data.catalogue import Source
from shared.errors import UserError

#: Tells the reader what is going on: a short phrase.
Note = Callable[[str], None]

CONNECT_S = 6.0
_ATTEMPTS = 5
_CHUNK = 1 << 18
_APT = threading.Lock()
_APT_OPTIONS = ["-o", "Acquire::Retries=1", "-o", "Acquire::http::Timeout=15", "-o", "Acquire::https::Timeout=15"]


class Failed(UserError):
    """A source did not give what it was asked for; the text says why."""


class Stopped(UserError):
    """The fetch was told to stop; nothing is wrong with the source."""


def download(url: str, target: Path, note: Note, stop: threading.Event) -> None:
    """Fetch `url` into `target`, going on where an earlier, interrupted download into `target.part` ended.

    Raises:
        Failed: the address does not answer, answers with an error, or breaks off again and again.
    """
    part = target.with_name(target.name + ".part")
    part.parent.mkdir(parents=True, exist_ok=True)
    for attempt in range(_ATTEMPTS):
        before = _size(part)
        try:
            _pull(url, part, note, stop)
            os.replace(part, target)
            return
        except (OSError, http.client.HTTPException) as error:
            reason = _reason(error)
            # Without any progress another attempt will not help; with some, the line is merely bad.
            if _size(part) <= before or attempt == _ATTEMPTS - 1:
                raise Failed(reason) from None
            note(f"{reason}; going on at {_size(part) / 1e6:.1f} MB")


def _pull(url: str, part: Path, note: Note, stop: threading.Event) -> None:
    have = _size(part)
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        answer = urllib.request.urlopen(request, timeout=CONNECT_S)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code != 416:
            raise
        # Asked to go on behind the end: either all is here already, or the part belongs to another file.
        if error.headers.get("Content-Range") == f"bytes */{have}":
            return
        part.unlink()
        return _pull(url, part, note, stop)
    with answer:
        resumed = answer.status == 206 and str(answer.headers.get("Content-Range", "")).startswith(f"bytes {have}-")
        length = answer.headers.get("Content-Length")
        done = have if resumed else 0
        total = done + int(length) if length else None
        with open(part, "ab" if resumed else "wb") as file:
            while chunk := answer.read(_CHUNK):
                if stop.is_set():
                    raise Stopped("stopped")
                file.write(chunk)
                done += len(chunk)
                note(f"{done / 1e6:.1f}{f' of {total / 1e6:.1f}' if total else ''} MB")
        if total is not None and done < total:
            raise ConnectionError(f"the connection closed after {done} of {total} bytes")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"the server answered {error.code} {error.reason}"
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    return " ".join(str(cause).split()) or type(cause).__name__


def package(source: Source, folder: Path, note: Note, stop: threading.Event) -> Path:
    """Let the client of the source's kind put the package into `folder`; returns the archive's path.

    Raises:
        Failed: the client is not installed, or it did not deliver; the text holds what it said.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if source.kind == "pip":
        _pip(source, folder, note, stop)
        pattern = "*"
    elif source.kind == "npm":
        limits = ["--fetch-retries=1", "--fetch-retry-mintimeout=1000", "--fetch-timeout=60000"]
        quiet = ["--ignore-scripts", "--no-audit", "--no-fund", "--no-update-notifier", "--loglevel=error"]
        _client(["npm", "pack", *quiet, *limits, *source.options, source.address], folder, note, stop)
        pattern = "*.tgz"
    else:
        _apt(source, folder, note, stop)
        pattern = "*.deb"
    found = [path for path in folder.glob(pattern) if path.is_file() and path.suffix != ".txt"]
    if len(found) != 1:
        raise Failed(f"the client left {len(found)} archives where one was expected")
    return found[0]


def _pip(source: Source, folder: Path, note: Note, stop: threading.Event) -> None:
    # With a hash pip refuses another archive before it runs anything in it (a source package has a setup.py).
    wish = folder / "requirement.txt"
    wish.write_text(
        source.address + (f" --hash=sha256:{source.sha256}" if source.sha256 else "") + "\n", encoding="utf-8"
    )
    options = ["--no-deps", "--no-input", "--disable-pip-version-check", "--progress-bar", "off", "--retries", "1"]
    command = [python_with_pip(), "-m", "pip", "download", *options, *source.options, "-d", ".", "-r", wish.name]
    _client(command, folder, note, stop)


def python_with_pip() -> str:
    """The interpreter of this environment, or, where the environment has no pip (as .venv), the one it was made by."""
    maker = Path(sys.base_prefix, "bin", f"python{sys.version_info.major}.{sys.version_info.minor}")
    return sys.executable if importlib.util.find_spec("pip") else str(maker)


def _apt(source: Source, folder: Path, note: Note, stop: threading.Event) -> None:
    command = ["apt-get", "download", *_APT_OPTIONS, *source.options, source.address]
    root = os.geteuid() == 0
    if root:
        command[2:2] = ["-o", "APT::Sandbox::User=root"]
    with _APT:
        try:
            _client(command, folder, note, stop)
        except Failed as failed:
            if "not installed" in str(failed):
                raise
            if not root:
                raise Failed(f"{failed} (if its package lists are missing, let root run apt-get update)") from None
            note("apt-get update")
            _client(["apt-get", "update", *_APT_OPTIONS], folder, note, stop)
            _client(command, folder, note, stop)


def _client(command: list[str], folder: Path, note: Note, stop: threading.Event) -> None:
    """Run a package client in `folder`; a failure is told in the client's own last words."""
    start = time.monotonic()
    client = "pip" if command[1:3] == ["-m", "pip"] else command[0]
    log = folder.with_name(folder.name + ".log")
    try:
        with open(log, "wb") as output:
            process = subprocess.Popen(command, cwd=folder, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    except FileNotFoundError:
        raise Failed(f"the program {client} is not installed") from None
    while (status := _wait(process)) is None:
        if stop.is_set():
            process.terminate()
            process.wait()
            raise Stopped("stopped")
        note(f"{client}, {time.monotonic() - start:.0f} s")
    if status:
        raise Failed(_last_words(log.read_text(encoding="utf-8", errors="replace")) or f"exit status {status}")


def _wait(process: subprocess.Popen[bytes]) -> int | None:
    try:
        return process.wait(timeout=0.5)
    except subprocess.TimeoutExpired:
        return None


def _last_words(text: str) -> str:
    """The lines of a client's output that say what went wrong, shortened to be read in a list."""
    lines = [" ".join(line.split()) for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith(("ERROR:", "E:", "npm error", "npm ERR!"))]
    telling = [line for line in errors if "log of this run" not in line and line not in ("npm error", "npm ERR!")]
    # pip names the cause of a failed connection only in its warnings.
    causes = [cause for cause in re.findall(r"\[Errno -?\d+\] ([^'\n]+)'", text)[-1:] if cause not in str(telling)]
    words = "; ".join((telling or lines[-2:])[:4] + causes)
    return words if len(words) <= 300 else words[:297] + "..."
