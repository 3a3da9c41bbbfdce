"""Where a number comes from: the code that a script runs, and the record that every stage leaves beside its results."""

import ast
import hashlib
import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from shared.errors import UserError
from shared.files import write_json
from shared.paths import ROOT

__all__ = ["Provenance", "Record", "begin", "code_sha256", "import_closure", "read_records"]

#: The only top-level packages whose files count as the project's code.
PACKAGES = ("shared", "papers", "benchmarks")

#: What else decides a result beside the code; looked at for "dirty" only (DVC tracks their content).
SETTINGS = ("requirements.txt", "data.dvc")


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """One stage's provenance, as it lies in `runs/<preset>/provenance/<stage>.json`; times in seconds of wall clock."""

    stage: str
    script: str = ""
    command: str
    preset: str
    seed: int | None = None
    commit: str
    dirty: bool | str
    code_sha256: str
    device: str
    wall_s: float
    started_utc: str
    versions: dict[str, str]
    interruptions: int = 0


@dataclass(frozen=True)
class Provenance:
    """A stage under way, made by `begin`; `finish` writes its record."""

    stage: str
    script: str
    preset: str
    seed: int | None
    commit: str
    dirty: bool | str
    code: str
    started_utc: str
    clock: float

    def finish(self, path: Path, interruptions: int = 0, earlier_wall_s: float = 0.0) -> None:
        """Write the record to `path` (JSON).

        Args:
            path: usually `runs/<preset>/provenance/<stage>.json`.
            interruptions: how often the stage was stopped and went on from its checkpoint.
            earlier_wall_s: seconds spent before the last interruption; added to this process's own.

        Raises:
            UserError: `path` cannot be written.
        """
        record = Record(
            stage=self.stage,
            script=self.script,
            command=shlex.join(["python", *sys.orig_argv[1:]]),
            preset=self.preset,
            seed=self.seed,
            commit=self.commit,
            dirty=self.dirty,
            code_sha256=self.code,
            device=_device(),
            wall_s=round(earlier_wall_s + time.monotonic() - self.clock, 1),
            started_utc=self.started_utc,
            versions=_versions(),
            interruptions=interruptions,
        )
        write_json(path, msgspec.to_builtins(record))


def begin(stage: str, preset: str, seed: int | None, script: Path, root: Path = ROOT) -> Provenance:
    """Start the clock of a stage and take down the state of the code before it runs.

    Args:
        stage: name of the stage, e.g. `train-seed0`.
        preset: `smoke`, `laptop`, `gpu` or `paper`.
        seed: the training seed; None for a stage that serves all seeds.
        script: the script of the stage, usually `Path(__file__)`.
        root: the checkout.

    Raises:
        UserError: the script, or a file that it imports, cannot be read or is not Python.
    """
    closure = import_closure(script, root)
    settings = [
        path for path in (script.resolve().parent / "params.yaml", *(root / name for name in SETTINGS)) if path.exists()
    ]
    commit, dirty = _git_state([*closure, *settings], root)
    return Provenance(
        stage=stage,
        script=script.resolve().relative_to(root.resolve()).as_posix(),
        preset=preset,
        seed=seed,
        commit=commit,
        dirty=dirty,
        code=code_sha256(script, root),
        started_utc=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        clock=time.monotonic(),
    )


def read_records(folder: Path) -> tuple[Record, ...]:
    """Read every provenance record of a folder, in order of the stage names; an absent folder has none.

    Raises:
        UserError: a file is not a provenance record; the message names file, key and reason.
    """
    records = []
    for path in sorted(folder.glob("*.json")):
        try:
            records.append(msgspec.json.decode(path.read_bytes(), type=Record))
        except msgspec.DecodeError as error:
            raise UserError(f"{path}: not a provenance record: {error}") from None
    return tuple(records)


def import_closure(script: Path, root: Path = ROOT) -> tuple[Path, ...]:
    """Every file of the repository that a script can import, at any depth, the script itself included; sorted.

    The source is read, not run: every `import` statement counts, those inside functions and conditions too. A package
    brings its `__init__.py`, and `from package import module` brings the module. Only the packages `shared`, `papers`
    and `benchmarks` count; whatever is installed is told by the versions in the record.

    Raises:
        UserError: a file is not Python, or imports a module of these packages that does not exist.
    """
    root = root.resolve()
    waiting = [script.resolve()]
    found: set[Path] = set()
    while waiting:
        path = waiting.pop()
        if path in found:
            continue
        found.add(path)
        waiting.extend(_packages_above(path, root))
        waiting.extend(_imported_files(path, root))
    return tuple(sorted(found))


def code_sha256(script: Path, root: Path = ROOT) -> str:
    """SHA-256 (hexadecimal) over the names and contents of `import_closure(script)`.

    Each file adds its path relative to `root` and the SHA-256 of its bytes, so that a renamed file and a moved line
    both change the result.

    Raises:
        UserError: as `import_closure`.
    """
    digest = hashlib.sha256()
    for path in import_closure(script, root):
        name = path.relative_to(root.resolve()).as_posix()
        digest.update(f"{name}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()


def _packages_above(path: Path, root: Path) -> list[Path]:
    """The `__init__.py` of every package that holds `path`: Python runs them before the module."""
    if not path.is_relative_to(root):
        raise UserError(f"{path} is outside the checkout {root}; only the project's own scripts have a code hash")
    folders = [folder for folder in path.parents if folder.is_relative_to(root) and folder != root]
    return [folder / "__init__.py" for folder in folders if (folder / "__init__.py").is_file()]


def _imported_files(path: Path, root: Path) -> Iterator[Path]:
    """The repository files that the import statements of one file name directly."""
    try:
        tree = ast.parse(path.read_bytes(), filename=str(path))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None
    except (SyntaxError, ValueError) as error:
        raise UserError(f"{path} is not Python: {error}") from None
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from _module_file(alias.name, path, root)
        elif isinstance(node, ast.ImportFrom):
            base = _absolute_name(node, path, root)
            yield from _module_file(base, path, root)
            for alias in node.names:
                # `from package import name`: the name may be a module, else it is defined by the package.
                yield from _module_file(f"{base}.{alias.name}", path, root, optional=True)


def _absolute_name(node: ast.ImportFrom, path: Path, root: Path) -> str:
    """The absolute name of what `from ... import` draws on; one leading dot is the package of the file."""
    if node.level == 0:
        return node.module or ""
    package = path.relative_to(root).parts[: -node.level]
    return ".".join([*package, *(node.module.split(".") if node.module else [])])


def _module_file(name: str, importer: Path, root: Path, optional: bool = False) -> Iterator[Path]:
    """The file of a dotted module name, when it belongs to the project; its packages follow from `_packages_above`."""
    if name.split(".")[0] not in PACKAGES:
        return
    base = root.joinpath(*name.split("."))
    if base.with_suffix(".py").is_file():
        yield base.with_suffix(".py")
    elif (base / "__init__.py").is_file():
        yield base / "__init__.py"
    elif not optional and not base.is_dir():
        raise UserError(f"{importer} imports {name}, which is not in {root}")


def _git_state(paths: list[Path], root: Path) -> tuple[str, bool | str]:
    """The commit, and whether one of `paths` differs from it; ("unknown", "unknown") outside git or before a commit.

    Only the files that decide the result are looked at: the results themselves are in git too, and a run changes them.
    """
    commit = _git(["rev-parse", "HEAD"], root)
    if commit is None:
        return "unknown", "unknown"
    changes = _git(["status", "--porcelain", "--", *(str(path) for path in paths)], root)
    return commit.strip(), "unknown" if changes is None else bool(changes.strip())


def _git(arguments: list[str], root: Path) -> str | None:
    """Standard output of one git command; None when git is missing or refuses."""
    try:
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout if done.returncode == 0 else None


def _device() -> str:
    """The GPU that torch has put to use in this process, else the processor's model and the number of threads."""
    torch = sys.modules.get(
        "torch"
    )  # imported by the stage if it computes at all; importing it here would cost seconds
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    share = f", {processes} processes" if processes > 1 else ""
    if torch is not None and torch.cuda.is_initialized():
        return f"{torch.cuda.get_device_name()}{share}"
    threads = torch.get_num_threads() if torch is not None else len(os.sched_getaffinity(0))
    return f"{_processor()}, {threads} {'thread' if threads == 1 else 'threads'}{share}"


def _processor() -> str:
    """The processor's model name, as Linux tells it; elsewhere what Python knows."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _versions() -> dict[str, str]:
    """Versions of Python, torch and numpy, read from the installed packages without importing them."""
    versions = {"python": platform.python_version()}
    for name in ("torch", "numpy"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return versions
