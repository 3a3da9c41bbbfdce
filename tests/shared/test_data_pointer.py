"""`data.dvc`: the catalogue predicts DVC's own hash, and every disagreement is told."""

import os
import shutil
import subprocess
import sys

import pytest

from shared.data import catalogue, manifest, pointer, verify
from shared.data.catalogue import DataSet, Source
from shared.errors import UserError
from shared.paths import ROOT

#: Names whose order depends on how one sorts: by characters or by folders, with capitals and letters beyond ASCII.
CONTENT = {
    "one": {"a.txt": b"1", "a/b.txt": b"22", "a-b": b"333", "B": b""},
    "two": {"é.txt": b"4444", "zz/deep/er": b"55555"},
}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A DVC repository with the folder data/ of two sets, and the pointer that DVC itself made of it."""
    monkeypatch.setattr(verify, "MEMORY", tmp_path / "verified.sqlite3")
    monkeypatch.setattr(manifest, "FOLDER", tmp_path / "manifests")
    manifest.FOLDER.mkdir()
    for name, content in CONTENT.items():
        entries = [manifest.describe(data, path) for path, data in content.items()]
        (manifest.FOLDER / f"{name}.tsv").write_text(manifest.render(entries), encoding="utf-8")
        for path, data in content.items():
            (tmp_path / "data" / name / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "data" / name / path).write_bytes(data)
    shutil.copytree(ROOT / ".dvc", tmp_path / ".dvc", ignore=shutil.ignore_patterns("tmp", "cache", "config.local"))
    shutil.copy(ROOT / ".dvcignore", tmp_path)
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    dvc(tmp_path, "add", "-q", "--no-commit", "data")
    (tmp_path / "data.dvc").write_text((tmp_path / "data.dvc").read_text() + "  cache: false\n")
    return tmp_path


def dvc(place, *arguments):
    done = subprocess.run([sys.executable, "-m", "dvc", *arguments], cwd=place, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def sets():
    source = (Source("npm", "x@1", member="{path}"),)
    return {n: DataSet("t", "l", "c", "h", "none", "n", source, n, manifest.read(n)) for n in CONTENT}


def prove(place):
    return pointer.prove(sets(), folder=place / "data", pointer=place / "data.dvc")


def test_the_catalogue_predicts_what_dvc_writes(place):
    assert pointer.expected(sets()) == pointer.recorded(place / "data.dvc")


def test_a_whole_folder_is_proved_with_dvc_and_a_part_without_it(place):
    assert "DVC finds data/ unchanged; 6 of 6 files" in prove(place)
    (place / "data" / "one" / ".a.1.part").write_bytes(b"on its way")
    assert "DVC finds data/ unchanged" in prove(place)
    shutil.rmtree(place / "data" / "two")
    assert "4 of 6 files verified (1 of 2 sets fetched)" in prove(place)
    shutil.rmtree(place / "data")
    assert "0 of 6 files" in prove(place)


def test_every_disagreement_is_named(place):
    one = place / "data" / "one" / "a.txt"
    one.write_bytes(b"x")
    with pytest.raises(UserError, match=r"a\.txt is damaged.*make data ONLY=one"):
        prove(place)
    one.write_bytes(b"1")
    (place / "data" / "stray").write_bytes(b"")
    with pytest.raises(UserError, match="1 files that are not in the catalogue"):
        prove(place)
    (place / "data" / "stray").unlink()
    text = (place / "data.dvc").read_text()
    (place / "data.dvc").write_text(text.replace("nfiles: 6", "nfiles: 7"))
    with pytest.raises(UserError, match=r"data\.dvc records .*7 files.*git checkout data\.dvc"):
        prove(place)
    (place / "data.dvc").write_text("outs: 3\n")
    with pytest.raises(UserError, match="no DVC pointer"):
        prove(place)
    (place / "data.dvc").unlink()
    with pytest.raises(UserError, match="is missing"):
        prove(place)


def test_dvc_is_asked_and_heard(place, monkeypatch):
    command = 'import sys; print(\'{"data.dvc": [{"changed outs": {"data": "modified"}}]}\')'
    fake = place / "python"
    fake.write_text(f"#!{sys.executable}\n{command}\n")
    fake.chmod(0o755)
    monkeypatch.setattr(pointer.sys, "executable", str(fake))
    with pytest.raises(UserError, match=r"disagrees although.*modified"):
        prove(place)


def test_the_pointer_comes_back_after_dvc_has_rewritten_it_for_a_part_of_the_data(place):
    """What `dvc repro` does with a stage that depends on a file in a folder of which only some sets were fetched."""
    stage = "stages:\n  use:\n    cmd: echo 1 > out\n    deps: [data/one/a.txt]\n    outs: [out]\n"
    (place / "dvc.yaml").write_text(stage)
    whole = (place / "data.dvc").read_text()
    dvc(place, "repro", "-q")
    assert (place / "data.dvc").read_text() == whole
    assert not any("data" in str(p) for p in (place / ".dvc" / "cache").rglob("*.dir"))
    os.rename(place / "data" / "two", place / "two")
    dvc(place, "repro", "-q")
    assert (place / "data.dvc").read_text() != whole
    assert pointer.restore(sets(), folder=place / "data", pointer=place / "data.dvc")
    assert (place / "data.dvc").read_text() == whole
    assert not pointer.restore(sets(), folder=place / "data", pointer=place / "data.dvc")
    (place / "data.dvc").write_text(whole.replace("nfiles: 6", "nfiles: 5"))
    assert not pointer.restore(sets(), folder=place / "data", pointer=place / "data.dvc")


def test_the_committed_pointer_is_the_catalogues():
    assert pointer.recorded() == pointer.expected(catalogue.load())
