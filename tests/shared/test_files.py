"""Files are written whole or not at all, and a refusal is one line."""

import os
from pathlib import Path

import pytest

from shared.errors import UserError
from shared.files import read_json, write_bytes, write_json, write_text
from tests.shared.hardship import forbidden, no_file_above


def test_written_and_replaced(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "file.txt"
    write_text(path, "one äöü\n")
    assert path.read_bytes() == "one äöü\n".encode()
    write_text(path, "two")
    assert path.read_text() == "two"
    assert [p.name for p in path.parent.iterdir()] == ["file.txt"], "nothing temporary is left"


def test_a_reader_sees_the_old_file_until_the_new_one_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    seen: list[str] = []
    fsync = os.fsync

    def look(descriptor: int) -> None:
        seen.append(path.read_text())
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", look)
    write_text(path, "new")
    assert seen == ["old"], "the content reaches the disk before the name does"
    assert path.read_text() == "new"


def assert_refused(path: Path, data: bytes = b"x" * 100) -> None:
    with pytest.raises(UserError, match="cannot write") as caught:
        write_bytes(path, data)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_full_disk_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with no_file_above(10):
        assert_refused(path)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"], "the half-written copy is gone"


def test_read_only_folder_keeps_the_old_file() -> None:
    with forbidden(0o555) as folder:
        assert_refused(folder / "old")
        assert (folder / "old").read_text() == "old"


def test_folder_that_may_not_be_entered() -> None:
    with forbidden(0o444) as folder:
        assert_refused(folder / "old")


def test_file_in_the_place_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("not a folder")
    assert_refused(tmp_path / "runs" / "file")


def test_folder_in_the_place_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "file" / "inside").mkdir(parents=True)
    assert_refused(tmp_path / "file")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_json(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    write_json(path, {"b": 1, "a": [1.5, "ä"]})
    assert path.read_text() == '{\n  "b": 1,\n  "a": [\n    1.5,\n    "ä"\n  ]\n}\n'
    assert read_json(path) == {"b": 1, "a": [1.5, "ä"]}
    with pytest.raises(ValueError):
        write_json(path, {"a": float("nan")})
    assert read_json(path) == {"b": 1, "a": [1.5, "ä"]}


def test_bad_json_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text('{"a": ')
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="is not JSON"):
        read_json(tmp_path / "bad.json")
    with pytest.raises(UserError, match="is not JSON"):
        read_json(tmp_path / "bytes.json")
    with pytest.raises(UserError, match=r"cannot read .*No such file"):
        read_json(tmp_path / "none.json")
