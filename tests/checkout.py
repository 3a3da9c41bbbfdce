"""What the tests that walk over the whole checkout have in common: its files, its papers, and clean clones of it."""

import ast
import functools
import os
import subprocess
import sys
from pathlib import Path

from shared import pipelines
from shared.paths import ROOT

#: The papers with a pipeline; the tests that walk over papers take their parameters from here.
PAPERS = pipelines.existing()


@functools.cache
def files() -> tuple[Path, ...]:
    """Every file that is, or could be, in git: tracked, or neither tracked nor ignored."""
    listed = run(ROOT, "git", "ls-files", "-z", "--cached", "--others", "--exclude-standard").stdout.split("\0")
    return tuple(sorted(ROOT / name for name in listed if name and (ROOT / name).is_file()))


def python_files(*folders: str) -> tuple[Path, ...]:
    """The Python files under top-level folders; all of them without arguments."""
    return tuple(
        path for path in files() if path.suffix == ".py" and (not folders or path.relative_to(ROOT).parts[0] in folders)
    )


@functools.cache
def tree(path: Path) -> ast.Module:
    """The syntax tree of a Python file."""
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def imported_modules(path: Path) -> set[str]:
    """The dotted names of the modules that a file imports, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def run(folder: Path, *command: str, check: bool = True, timeout: float = 600) -> subprocess.CompletedProcess[str]:
    """Run a command in `folder` with the environment's Python and nothing of the present checkout on the import path.

    A failure ends the test with the last lines of both outputs.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "GIT_"))}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=timeout
    )
    if check and done.returncode != 0:
        tail = "\n".join((done.stdout + done.stderr).splitlines()[-40:])
        raise AssertionError(f"`{' '.join(command)}` in {folder} ended with status {done.returncode}:\n{tail}")
    return done


def clone(target: Path) -> Path:
    """A clean clone of the checkout in `target`, with the uncommitted changes of tracked files brought along.

    So a developer tests what is on disk; a new file that was never added to git is missing in it, as it would be
    for everybody else.
    """
    run(ROOT, "git", "clone", "--quiet", "--no-local", str(ROOT), str(target))
    changes = subprocess.run(["git", "diff", "HEAD", "--binary"], cwd=ROOT, capture_output=True, check=True).stdout
    if changes:
        subprocess.run(["git", "apply", "--whitespace=nowarn"], cwd=target, input=changes, check=True)
    return target
