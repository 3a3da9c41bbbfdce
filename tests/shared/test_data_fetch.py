"""Fetching: whole files only, whichever source answers; resume, repair, and one message when nothing answers."""

import gzip
import http.server
import importlib.util
import io
import os
import signal
import subprocess
import sys
import tarfile
import textwrap
import threading
import time

import pytest

from shared.data import fetch, manifest, pointer, sources, verify
from shared.data.catalogue import DataSet, Source
from shared.errors import UserError
from shared.paths import ROOT

CONTENT = {"a.bin": b"first" * 1000, "b/c.bin": b"other" * 900}


class Server(http.server.ThreadingHTTPServer):
    """Serves `pages` (path -> bytes); `breaks` says after how many bytes an answer to a path is cut off, once."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.pages, self.breaks, self.ranges, self.asked = {}, {}, True, []
        self.url = f"http://127.0.0.1:{self.server_port}"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        page, start = self.server.pages.get(self.path), 0
        self.server.asked.append((self.path, self.headers.get("Range")))
        if page is None:
            return self.send_error(404)
        if self.headers.get("Range") and self.server.ranges:
            start = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
            if start >= len(page):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(page)}")
                self.send_header("Content-Length", "0")
                return self.end_headers()
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(page) - 1}/{len(page)}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(page) - start))
        self.end_headers()
        self.wfile.write(page[start : self.server.breaks.pop(self.path, len(page))])

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """An empty place for a set "toy" with a manifest and a memory of its own."""
    monkeypatch.setattr(verify, "MEMORY", tmp_path / "verified.sqlite3")
    monkeypatch.setattr(manifest, "FOLDER", tmp_path / "manifests")
    manifest.FOLDER.mkdir()
    rows = manifest.render(manifest.describe(data, path) for path, data in CONTENT.items())
    (manifest.FOLDER / "toy.tsv").write_text(rows, encoding="utf-8")
    return tmp_path


def toy(*given):
    return DataSet("A toy", "MIT", "nobody", "nowhere", "none", "none", given, "toy", manifest.read("toy"))


def get(place, *given):
    fetch.fetch([toy(*given)], folder=place / "data", downloads=place / "downloads")


def complete(place):
    return all((place / "data" / "toy" / path).read_bytes() == data for path, data in CONTENT.items())


def make_tar(content):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, data in content.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def fake_client(place, monkeypatch, name, body):
    """Put a program called `name` first on the PATH."""
    path = place / "bin" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!{sys.executable}\nimport os, sys, time\n{textwrap.dedent(body)}", encoding="utf-8")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{path.parent}{os.pathsep}{os.environ['PATH']}")


def test_single_files_gzipped_files_and_archives_all_arrive(place, server):
    server.pages = {f"/plain/{path}": data for path, data in CONTENT.items()}
    server.pages |= {f"/packed/{path}.gz": gzip.compress(data) for path, data in CONTENT.items()}
    inner = make_tar({f"top/{path}": data for path, data in CONTENT.items()})
    server.pages |= {"/all.tar.gz": inner, "/nested.tar.gz": make_tar({"x/inner.tar.gz": inner})}
    for source in (
        Source("url", server.url + "/plain/{path}"),
        Source("url", server.url + "/packed/{path}.gz", gunzip=True),
        Source("url", server.url + "/all.tar.gz", member="top/{path}"),
        Source("url", server.url + "/nested.tar.gz", member="x/inner.tar.gz!top/{path}"),
    ):
        get(place, source)
        assert complete(place)
        assert not (place / "downloads" / "toy").exists()
        for path in CONTENT:
            (place / "data" / "toy" / path).unlink()


def test_what_is_right_is_left_alone_and_what_is_damaged_is_repaired(place, server):
    server.pages = {f"/{path}": data for path, data in CONTENT.items()}
    source = Source("url", server.url + "/{path}")
    get(place, source)
    server.asked.clear()
    get(place, source)
    assert server.asked == []
    (place / "data" / "toy" / "a.bin").write_bytes(CONTENT["a.bin"][:-1] + b"!")
    get(place, source)
    assert complete(place)
    assert [path for path, _ in server.asked] == ["/a.bin"]


def test_a_broken_connection_is_taken_up_where_it_ended(place, server):
    server.pages, server.breaks = {"/file": CONTENT["a.bin"]}, {"/file": 2000}
    sources.download(server.url + "/file", place / "file", lambda text: None, threading.Event())
    assert (place / "file").read_bytes() == CONTENT["a.bin"]
    assert server.asked == [("/file", None), ("/file", "bytes=2000-")]


@pytest.mark.parametrize("ranges", [True, False])
def test_a_download_killed_earlier_goes_on_or_starts_again_where_ranges_are_unknown(place, server, ranges):
    server.pages, server.ranges = {"/file": CONTENT["a.bin"]}, ranges
    (place / "file.part").write_bytes(CONTENT["a.bin"][:1234])
    sources.download(server.url + "/file", place / "file", lambda text: None, threading.Event())
    assert (place / "file").read_bytes() == CONTENT["a.bin"]
    assert server.asked == [("/file", "bytes=1234-")]


def test_a_part_that_is_whole_already_is_kept_and_one_that_is_too_long_is_dropped(place, server):
    server.pages = {"/file": CONTENT["a.bin"]}
    for part in (CONTENT["a.bin"], CONTENT["a.bin"] + b"more"):
        (place / "file.part").write_bytes(part)
        sources.download(server.url + "/file", place / "file", lambda text: None, threading.Event())
        assert (place / "file").read_bytes() == CONTENT["a.bin"]


def test_a_part_of_another_file_does_not_spoil_the_source(place, server):
    server.pages = {f"/{path}": data for path, data in CONTENT.items()}
    work = place / "downloads" / "toy" / "0-url"
    work.mkdir(parents=True)
    (work / "a.bin.part").write_bytes(b"something else")
    get(place, Source("url", server.url + "/{path}"))
    assert complete(place)


def test_a_source_with_wrong_content_is_refused_and_the_next_one_steps_in(place, server, capsys):
    server.pages = {f"/bad/{path}": b"<html>please log in</html>" for path in CONTENT}
    server.pages |= {"/good.tar.gz": make_tar(CONTENT)}
    get(place, Source("url", server.url + "/bad/{path}"), Source("url", server.url + "/good.tar.gz", member="{path}"))
    assert complete(place)
    assert "2 files verified, from http" in capsys.readouterr().err


def test_one_message_lists_every_source_and_its_reason(place, server, monkeypatch):
    server.pages = {"/evil.tar.gz": make_tar({"../a.bin": b"", **CONTENT}), "/other.tar.gz": make_tar(CONTENT)}
    monkeypatch.setenv("PATH", str(place))
    given = (
        Source("url", "http://127.0.0.1:1/{path}"),
        Source("url", server.url + "/absent/{path}"),
        Source("url", server.url + "/evil.tar.gz", member="{path}"),
        Source("url", server.url + "/other.tar.gz", member="{path}", sha256="0" * 64),
        Source("npm", "toy@1.0.0", member="package/{path}"),
    )
    with pytest.raises(UserError) as caught:
        get(place, *given)
    lines = str(caught.value).splitlines()
    assert lines[0] == "could not fetch toy; no source gave the files"
    reasons = ["Connection refused", "404", "outside the folder", "another archive", "npm is not installed"]
    for line, source, reason in zip(lines[2:-1], given, reasons, strict=True):
        assert source.name in line
        assert reason in line
    assert 'make data ONLY="toy"' in lines[-1]
    assert not (place / "data").exists()


def test_a_package_client_is_asked_by_name_and_its_last_words_are_told(place, monkeypatch):
    archive = make_tar({f"package/{path}": data for path, data in CONTENT.items()})
    body = f"open('toy-1.0.0.tgz', 'wb').write({archive!r}); open('../asked', 'w').write(' '.join(sys.argv[1:]))"
    fake_client(place, monkeypatch, "npm", body)
    monkeypatch.setattr(fetch.shutil, "rmtree", lambda path: None)  # keep what the client was asked
    get(place, Source("npm", "toy@1.0.0", member="package/{path}"))
    asked = (place / "downloads" / "toy" / "asked").read_text(encoding="utf-8").split()
    assert complete(place)
    assert (asked[0], asked[-1]) == ("pack", "toy@1.0.0")
    assert not any("://" in word for word in asked)
    (place / "data" / "toy" / "a.bin").unlink()
    fake_client(place, monkeypatch, "npm", "print('npm error nobody is at home', file=sys.stderr); sys.exit(1)")
    with pytest.raises(UserError, match="nobody is at home"):
        get(place, Source("npm", "toy@2.0.0", member="package/{path}"))


def test_a_set_that_fails_does_not_hold_up_the_others(place, server):
    (manifest.FOLDER / "lost.tsv").write_text(
        (manifest.FOLDER / "toy.tsv").read_text(encoding="utf-8"), encoding="utf-8"
    )
    server.pages = {f"/{path}": data for path, data in CONTENT.items()}
    good, lost = toy(Source("url", server.url + "/{path}")), toy(Source("url", server.url + "/no/{path}"))
    lost = DataSet(lost.title, "MIT", "nobody", "nowhere", "none", "none", lost.sources, "lost", lost.files)
    with pytest.raises(UserError, match="could not fetch lost;"):
        fetch.fetch([lost, good], folder=place / "data", downloads=place / "downloads")
    assert complete(place)


KILLED = """
import threading
from pathlib import Path
from shared.data import fetch, manifest, verify
from shared.data.catalogue import DataSet, Source
place = Path({place!r})
manifest.FOLDER, verify.MEMORY = place / "manifests", place / "memory"
source = Source("npm", "toy@1", member="{{path}}")
toy = DataSet("A toy", "MIT", "x", "x", "none", "x", (source,), "toy", manifest.read("toy"))
fetch.fetch([toy], folder=place / "data", downloads=place / "downloads")
"""


def test_a_killed_fetch_leaves_no_half_file_and_the_next_one_finishes(place, monkeypatch):
    archive = make_tar(CONTENT)
    slow = f"open('toy.tgz', 'wb').write({archive[:100]!r}); open('../../../began', 'w').close(); time.sleep(60)"
    fake_client(place, monkeypatch, "npm", slow)
    command = [sys.executable, "-c", KILLED.format(place=str(place))]
    process = subprocess.Popen(command, cwd=ROOT, start_new_session=True)
    while not (place / "began").exists():
        assert process.poll() is None
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (place / "data").exists()
    fake_client(place, monkeypatch, "npm", f"open('toy.tgz', 'wb').write({archive!r})")
    left = place / "data" / "toy" / ".a.bin.1.part"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"half")
    get(place, Source("npm", "toy@1", member="{path}"))
    assert complete(place)
    assert not left.exists()


def test_describe_prints_a_manifest_and_unknown_names_end_with_status_one(place):
    (place / "new").mkdir()
    (place / "new" / "file").write_bytes(b"x")
    run = [sys.executable, "-m", "shared.data.fetch"]
    done = subprocess.run([*run, "--describe", str(place / "new")], cwd=ROOT, capture_output=True, text=True)
    assert manifest.parse(done.stdout, "stdout") == (manifest.describe(b"x", "file"),)
    done = subprocess.run([*run, "cifar11"], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: no data set cifar11 in the catalogue; it has: mnist,")


@pytest.mark.data
def test_the_full_data_match_data_dvc(monkeypatch):
    monkeypatch.undo()
    if not (ROOT / "data").exists():
        pytest.skip("nothing is fetched")
    assert "matches the catalogue" in pointer.prove(fetch.load())


def test_pip_is_found_from_an_environment_without_it(monkeypatch):
    """`make setup` fills .venv from outside, so that it holds no pip; the interpreter that made it does."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    found = sources.python_with_pip()
    assert found != sys.executable
    assert "pip" in subprocess.run([found, "-m", "pip", "--version"], check=True, capture_output=True, text=True).stdout
