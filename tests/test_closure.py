"""DVC does not follow imports: each stage has to list, file by file, the code that its command can import.

A missing file would leave a stale number after a change; a needless one would train again for nothing. What a command
opens besides code is only seen by running it: that is done here for the final stages, which take a second.
"""

import ast
import re
import sys
from pathlib import Path

import pytest

from shared import pipelines
from shared.paths import PAPERS, ROOT
from shared.pipelines import Stage
from shared.provenance import import_closure
from tests import checkout

STAGES = pipelines.stages() if checkout.PAPERS else ()
MODULE = re.compile(r"-m\s+((?:papers|shared|benchmarks)(?:\.\w+)+)")
TEMPLATES = (".j2", ".css", ".mplstyle")

every_stage = pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)


def scripts(stage: Stage) -> list[Path]:
    """The files of the modules that a stage's command starts."""
    return [ROOT.joinpath(*name.split(".")).with_suffix(".py") for name in MODULE.findall(stage.command)]


def templates(code: set[Path], stage: Stage) -> set[Path]:
    """The template files that string constants of the code name: beside the module, or in the paper's folder."""
    named = {
        (path, node.value)
        for path in code
        for node in ast.walk(checkout.tree(path))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.endswith(TEMPLATES)
    }
    # The final stage lies in the root dvc.yaml and is named by the paper's folder.
    places = {folder / name for path, name in named for folder in (path.parent, stage.file.parent, ROOT / stage.name)}
    return {place for place in places if place.is_file()}


def test_every_paper_has_stages() -> None:
    """The parameters of the tests below are not empty by mistake."""
    for name in checkout.PAPERS:
        assert [stage for stage in STAGES if stage.file == ROOT / "papers" / name / "dvc.yaml"]
        assert [stage for stage in STAGES if stage.name == f"papers/{name}"]


@every_stage
def test_command_runs_a_module_from_the_root(stage: Stage) -> None:
    """From the root, `python -m` imports this checkout and no other; from a folder below, it would import nothing."""
    assert scripts(stage), f"{stage.command!r} starts no module of this repository"
    assert stage.folder == ROOT, f"{stage.name} runs in {stage.folder}: give it `wdir: ../..`"


@every_stage
def test_declared_code_is_the_import_closure(stage: Stage) -> None:
    closure = {path for script in scripts(stage) for path in import_closure(script)}
    needed = closure | templates(closure, stage)
    declared = {path for path in stage.dependencies if path.suffix in (".py", *TEMPLATES)}
    missing = sorted(path.relative_to(ROOT).as_posix() for path in needed - declared)
    needless = sorted(path.relative_to(ROOT).as_posix() for path in declared - needed)
    assert not missing, f"{stage.name} can import these, so add them to its deps: {missing}"
    assert not needless, f"{stage.name} cannot import these, so take them out of its deps: {needless}"


@every_stage
def test_no_folder_of_code_is_a_dependency(stage: Stage) -> None:
    """A folder would also hold byte code and what other papers need."""
    folders = [path for path in stage.dependencies if path.is_dir() and any(path.rglob("*.py"))]
    assert not folders


@every_stage
def test_dependencies_exist(stage: Stage) -> None:
    """A misspelt file would only fail after the stages before it have run. Data and outputs may be absent."""
    outputs = [path for other in STAGES for path in other.outputs]
    for path in stage.dependencies:
        made = any(path == output or output in path.parents for output in outputs)
        assert made or path.exists() or ROOT / "data" in path.parents, f"{stage.name}: {path} is not there"


#: Runs a module as `python -m` does and lists every file that it opens, one a line.
TRACER = """
import runpy, sys
opened = open(sys.argv.pop(1), "w")
def note(event, arguments):
    if event == "open" and isinstance(arguments[0], str):
        opened.write(arguments[0] + "\\n")
sys.addaudithook(note)
runpy.run_module(sys.argv.pop(1), run_name="__main__", alter_sys=True)
"""
#: Of all papers together, drawn anew by each final stage and declared by none: see the head of the root dvc.yaml.
INDEX = ("README.md", "reports/README.md")


def opened_files(root: Path, log: Path, module: str, *arguments: str) -> set[str]:
    """The files below `root`, relative to it, that `python -m module` opens there; code is left out."""
    checkout.run(root, sys.executable, "-c", TRACER, str(log), module, *arguments)
    paths = {(root / line).resolve() for line in log.read_text().splitlines()}
    inside = {path.relative_to(root).as_posix() for path in paths if path.is_relative_to(root) and path.is_file()}
    return {name for name in inside if not name.endswith((".py", ".pyc"))}


@pytest.mark.parametrize("name", checkout.PAPERS)
def test_the_final_stage_reads_what_it_declares(name: str, tmp_path: Path) -> None:
    """Records, templates, titles: a file that the report rests on and the stage does not name would leave it stale."""
    clone = checkout.clone(tmp_path / "checkout")
    stage = next(stage for stage in STAGES if stage.name == f"papers/{name}")
    opened = opened_files(clone, tmp_path / "opened", *stage.command.removeprefix("python -m ").split())
    assert {f"papers/{name}/claims.yaml", f"papers/{name}/report.md.j2"} <= opened, "the tracer sees nothing"
    declared = {path.relative_to(ROOT).as_posix() for path in (*stage.dependencies, *stage.outputs)}
    declared |= {f"papers/{name}/params.yaml"}  # key by key, under `params`
    others = tuple(f"{folder}/{other}/" for folder in ("papers", "reports") for other in PAPERS if other != name)
    undeclared = [
        path
        for path in sorted(opened - set(INDEX))
        if not path.startswith(others)  # for the index, too
        and not any(path == each or path.startswith(f"{each}/") for each in declared)
    ]
    assert not undeclared, f"papers/{name} reads these, so add them to its deps in the root dvc.yaml: {undeclared}"
