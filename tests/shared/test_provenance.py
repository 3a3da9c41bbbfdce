"""The code that a script runs, and the record of a stage."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from shared import paths, provenance
from shared.errors import UserError


def write(root: Path, **files: str) -> None:
    """Write files; two underscores in a name stand for a slash."""
    for name, text in files.items():
        path = root / (name.replace("__", "/") + ".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A small repository with every form of import."""
    write(
        tmp_path,
        shared__a="import shared.b\n",
        shared__b="VALUE = 1\n",
        shared__pack__c="from . import d\nfrom .. import e\nfrom ..pack.f import NAME\n",
        shared__pack__d="",
        shared__pack__f="NAME = 2\n",
        shared__e="",
        shared__late="",
        shared__unused="",
        papers__x__model="",
        papers__x__train="import os, numpy\nfrom shared import a\nfrom shared.pack.c import d\n"
        "from papers.x import model as m\ndef f():\n    from shared import late\n",
    )
    for package in ("shared", "shared/pack", "papers", "papers/x"):
        (tmp_path / package / "__init__.py").write_text("")
    return tmp_path


def names(closure: tuple[Path, ...], root: Path) -> list[str]:
    return [path.relative_to(root).as_posix() for path in closure]


def test_closure_follows_every_form_of_import(root: Path) -> None:
    assert names(provenance.import_closure(root / "papers/x/train.py", root), root) == [
        "papers/__init__.py",
        "papers/x/__init__.py",
        "papers/x/model.py",
        "papers/x/train.py",
        "shared/__init__.py",
        "shared/a.py",
        "shared/b.py",
        "shared/e.py",
        "shared/late.py",
        "shared/pack/__init__.py",
        "shared/pack/c.py",
        "shared/pack/d.py",
        "shared/pack/f.py",
    ]


def test_closure_ends_when_modules_import_each_other(root: Path) -> None:
    write(root, shared__b="import shared.a\n")
    assert root / "shared/a.py" in provenance.import_closure(root / "shared/b.py", root)


def test_closure_is_what_python_loads() -> None:
    """The second opinion: the modules that a fresh interpreter has after importing a module of this repository."""
    code = (
        "import sys, shared.claims; print(*[m.__file__ for n, m in sys.modules.items() if n.split('.')[0] == 'shared'])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=paths.ROOT, capture_output=True, text=True, check=True)
    loaded = {Path(name) for name in done.stdout.split()}
    assert loaded
    assert loaded <= set(provenance.import_closure(paths.ROOT / "shared/claims.py"))


@pytest.mark.parametrize(
    ("text", "message"),
    [("import shared.gone\n", "imports shared.gone, which is not in"), ("def f(:\n", "is not Python")],
)
def test_closure_names_the_bad_file(root: Path, text: str, message: str) -> None:
    write(root, shared__b=text)
    with pytest.raises(UserError, match=message) as error:
        provenance.import_closure(root / "papers/x/train.py", root)
    assert "shared/b.py" in str(error.value)


def test_closure_refuses_a_script_outside(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    outside = tmp_path_factory.mktemp("elsewhere") / "s.py"
    outside.write_text("")
    with pytest.raises(UserError, match="outside the checkout"):
        provenance.import_closure(outside, root)


def test_hash_changes_with_the_closure_and_with_nothing_else(root: Path) -> None:
    script = root / "papers/x/train.py"
    before = provenance.code_sha256(script, root)
    (root / "shared/unused.py").write_text("CHANGED = 1\n")
    assert provenance.code_sha256(script, root) == before
    (root / "shared/b.py").write_text("VALUE = 2\n")
    changed = provenance.code_sha256(script, root)
    assert changed != before
    (root / "shared/b.py").write_text("VALUE = 1\n")
    assert provenance.code_sha256(script, root) == before
    # A moved file with the same content is other code.
    (root / "papers/x/model.py").rename(root / "papers/x/net.py")
    script.write_text(script.read_text().replace("model as", "net as"))
    assert provenance.code_sha256(script, root) not in (before, changed)


def git(root: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", *identity, *arguments], cwd=root, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def recorded(root: Path, **options: float) -> provenance.Record:
    begun = provenance.begin("train-seed3", "laptop", 3, root / "papers/x/train.py", root)
    begun.finish(root / "provenance/train-seed3.json", **options)  # type: ignore[arg-type]
    (record,) = provenance.read_records(root / "provenance")
    return record


def test_record_outside_git(root: Path) -> None:
    record = recorded(root, interruptions=2, earlier_wall_s=100.0)
    assert (record.commit, record.dirty) == ("unknown", "unknown")
    assert (record.stage, record.preset, record.seed, record.interruptions) == ("train-seed3", "laptop", 3, 2)
    assert record.script == "papers/x/train.py"
    assert record.code_sha256 == provenance.code_sha256(root / "papers/x/train.py", root)
    assert 100.0 <= record.wall_s < 160.0
    assert record.command.startswith("python ")
    assert record.versions["python"] == ".".join(map(str, sys.version_info[:3]))
    assert record.versions["torch"].startswith("2.")
    assert "1 thread" in record.device  # the tests' own setting, read from torch
    keys = json.loads((root / "provenance/train-seed3.json").read_text())
    assert {"stage", "command", "preset", "seed", "commit", "dirty", "code_sha256", "device", "wall_s"} <= set(keys)


def test_dirty_tells_of_the_code_only(root: Path) -> None:
    git(root, "init", "-q")
    git(root, "add", ".")
    git(root, "commit", "-q", "-m", "x")
    assert recorded(root).commit == git(root, "rev-parse", "HEAD")
    (root / "shared/unused.py").write_text("x = 1\n")
    (root / "results.json").write_text("{}")
    assert recorded(root).dirty is False
    (root / "papers/x/params.yaml").write_text("preset: laptop\n")
    assert recorded(root).dirty is True
    git(root, "add", "papers/x/params.yaml")
    git(root, "commit", "-q", "-m", "y")
    assert recorded(root).dirty is False
    (root / "shared/b.py").write_text("VALUE = 5\n")
    assert recorded(root).dirty is True


def test_bad_record_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"stage": 3}')
    with pytest.raises(UserError, match=r"a\.json.*Expected `str`, got `int` - at `\$\.stage`"):
        provenance.read_records(tmp_path)
    assert provenance.read_records(tmp_path / "absent") == ()


def test_publishing_does_not_load_torch_or_matplotlib() -> None:
    """Both take seconds; a check of the reports needs neither."""
    code = "import sys, shared.report.publish; print({'torch', 'matplotlib'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=paths.ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
