"""The rules of CONTRIBUTING.md that a program can check, for every paper and for the whole checkout."""

import ast
import importlib
import importlib.metadata
import re
import sys
from pathlib import Path

import pytest

from shared import claims, settings
from shared.paths import PAPERS as NINE
from shared.paths import ROOT, paper
from tests import checkout

every_paper = pytest.mark.parametrize("name", checkout.PAPERS)

REQUIRED = (
    "README.md", "params.yaml", "settings.py", "dvc.yaml", "model.py", "train.py", "evaluate.py",
    "claims.yaml", "report.md.j2", "report.py", "__init__.py",
)  # fmt: skip
PRESETS = ("smoke", "laptop", "gpu", "paper")
MOST_KEYS = 15
MOST_LINES = 300
MOST_LINES_OF_A_FUNCTION = 60


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


# --- a paper's folder ---


def test_every_pipeline_belongs_to_a_known_paper() -> None:
    """A folder with a misspelt name would be left out by every test that walks over the papers."""
    assert {path.parent.name for path in (ROOT / "papers").glob("*/dvc.yaml")} == set(checkout.PAPERS)
    assert set(checkout.PAPERS) <= set(NINE)


@every_paper
def test_required_files(name: str) -> None:
    missing = [file for file in REQUIRED if not (paper(name) / file).is_file()]
    assert not missing, f"papers/{name} lacks {missing}"
    ours = {path.name for path in paper(name).glob("*.py")} - set(REQUIRED)
    assert ours, f"papers/{name} has no module for the method's mathematics, such as losses.py"


@every_paper
def test_tests_of_a_paper(name: str) -> None:
    """Each paper has golden losses, resume equality and parameter counts among its tests."""
    sources = [
        path.read_text() for path in checkout.python_files("tests") if name in relative(path).removeprefix("tests/")
    ]
    names = set(re.findall(r"def (test_\w+)", "\n".join(sources)))
    for word in ("golden", "resum", "parameter"):
        assert any(word in test for test in names), f"no test of {name} has {word!r} in its name"


@every_paper
def test_presets(name: str) -> None:
    """Four blocks with the same few keys, so that one screen shows how far a run is from the paper."""
    path = paper(name) / "params.yaml"
    document = settings.read_yaml(path)
    blocks = {
        key: value for key, value in document.items() if isinstance(value, dict) and key not in ("ablation", "arms")
    }
    assert document["preset"] == "laptop", "the committed preset is the default one"
    assert document["seeds"], "at least one seed"
    assert all(isinstance(seed, int) for seed in document["seeds"])
    assert set(PRESETS) <= set(blocks)
    extra = [key for key in blocks if key not in PRESETS and not key.startswith(("gpu_", "paper_"))]
    assert not extra, f"blocks that are no preset: {extra}"
    keys = set(blocks["laptop"])
    assert len(keys) <= MOST_KEYS, f"{len(keys)} keys, at most {MOST_KEYS}"
    for key, block in blocks.items():
        assert set(block) == keys, f"{key} and laptop differ in {set(block) ^ keys}"
    lines = path.read_text().splitlines()
    for key in blocks:
        above = lines[lines.index(f"{key}:") - 1]
        assert above.startswith("# "), f"say above `{key}:` how long it takes, on what, and which value to expect"


@every_paper
def test_every_preset_is_a_valid_setting(name: str) -> None:
    kind = importlib.import_module(f"papers.{name}.settings").Settings
    path = paper(name) / "params.yaml"
    blocks = [key for key in settings.read_yaml(path) if key.split("_")[0] in PRESETS]
    loaded = [settings.load(path, block, kind) for block in blocks]
    assert len({repr(x) for x in loaded}) == len(blocks), "two presets are the same"


@every_paper
def test_claims_are_well_formed(name: str) -> None:
    listed = claims.of_paper(name)  # checks keys, types, expressions and repeated identifiers
    assert listed, "a paper without claims"
    for claim in listed:
        assert re.fullmatch(r"[A-Z]+\d+[a-z]?-[a-z0-9-]+", claim.id), f"{claim.id}: write it like C4-residual-posterior"
        assert claim.statement.strip().endswith("."), f"{claim.id}: the statement is a sentence"


@every_paper
def test_root_stage_is_named_by_the_folder(name: str) -> None:
    stages = settings.read_yaml(ROOT / "dvc.yaml")["stages"]
    assert f"papers/{name}" in stages, f"`dvc repro papers/{name}` needs a stage of that name in the root dvc.yaml"


@every_paper
def test_readme_names_the_commands_and_the_code(name: str) -> None:
    text = (paper(name) / "README.md").read_text()
    assert f"dvc repro papers/{name}" in text
    named = set(re.findall(r"`(\w+\.py):(\w+)", text))
    assert named, "the README maps equations to `file.py:function`"
    for file, function in sorted(named):
        source = (paper(name) / file).read_text()
        assert re.search(rf"\b(def|class) {function}\b", source), f"README names {file}:{function}, which is not there"


@every_paper
def test_model_is_networks_only(name: str) -> None:
    imported = checkout.imported_modules(paper(name) / "model.py")
    forbidden = {"argparse", "logging", "os", "io", "json", "pathlib", "shared.files", "shared.paths"}
    assert not imported & forbidden, "model.py holds networks: no files, no command line, no logging"
    calls = [x for x in ast.walk(checkout.tree(paper(name) / "model.py")) if isinstance(x, ast.Call)]
    assert not any(isinstance(call.func, ast.Name) and call.func.id in ("open", "print") for call in calls)


# --- the direction of dependencies ---


def test_shared_knows_no_paper() -> None:
    for path in checkout.python_files("shared"):
        wrong = [module for module in checkout.imported_modules(path) if module.split(".")[0] in ("papers", "tests")]
        assert not wrong, f"{relative(path)} imports {wrong}: the arrow is papers -> shared"


def test_no_paper_knows_another() -> None:
    for path in checkout.python_files("papers"):
        own = path.relative_to(ROOT).parts[1]
        for module in checkout.imported_modules(path):
            parts = module.split(".")
            assert parts[0] != "papers" or len(parts) == 1 or parts[1] == own, f"{relative(path)} imports {module}"
            assert parts[0] != "tests", f"{relative(path)} imports {module}"


def test_packages_run_nothing_on_import() -> None:
    """An `__init__.py` with imports would make every module of the package depend on all the others."""
    for path in checkout.python_files("shared", "papers"):
        if path.name == "__init__.py":
            body = [
                x
                for x in checkout.tree(path).body
                if not (isinstance(x, ast.Expr) and isinstance(x.value, ast.Constant))
            ]
            assert not body, f"{relative(path)} holds code"


def test_imports_are_declared_requirements() -> None:
    """Every third-party import of shared/ and papers/ is in requirements.txt, and nothing else is."""
    declared = set(re.findall(r"^([\w.-]+)==", (ROOT / "requirements.txt").read_text(), re.M))
    by_module = importlib.metadata.packages_distributions()
    used: set[str] = set()
    for path in checkout.python_files("shared", "papers", "benchmarks"):
        for module in {name.split(".")[0] for name in checkout.imported_modules(path)}:
            if module not in sys.stdlib_module_names and module not in ("shared", "papers", "benchmarks"):
                owners = set(by_module[module])
                assert owners & declared, f"{relative(path)} imports {module}; requirements.txt does not name {owners}"
                used |= owners & declared
    not_imported = {"dvc", "torchvision"}  # a command; what shared/torchvision_operators.py prepares
    assert declared - used - not_imported == set(), "requirements.txt names what nothing imports"


def test_versions_are_those_of_the_environment() -> None:
    """The lists are exact, agree with each other and with what is installed."""
    pinned: dict[str, str] = {}
    for file in ("requirements.txt", "requirements-dev.txt", "constraints.txt"):
        for line in (ROOT / file).read_text().splitlines():
            if line and not line.startswith("#"):
                assert line.count("==") == 1, f"{file}: {line!r} is not an exact version"
                name, version = line.split("==")
                assert pinned.setdefault(name.lower(), version) == version, f"{file}: {name} has two versions"
    for name, version in pinned.items():
        installed = importlib.metadata.version(name).split("+")[0]
        assert installed == version, f"{name} {installed} is installed, {version} is asked for: make setup"


# --- style ---


@pytest.mark.parametrize("folder", ["shared", "papers", "benchmarks", "tests"])
def test_modules_and_functions_are_short(folder: str) -> None:
    for path in checkout.python_files(folder):
        lines = len(path.read_text().splitlines())
        assert lines <= MOST_LINES or folder == "tests", f"{relative(path)} has {lines} lines, at most {MOST_LINES}"
        for node in ast.walk(checkout.tree(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                assert length <= MOST_LINES_OF_A_FUNCTION, (
                    f"{relative(path)}:{node.lineno} {node.name} has {length} lines"
                )


def test_public_names_of_shared_have_docstrings() -> None:
    missing = [
        f"{relative(path)}:{node.lineno} {node.name}"
        for path in checkout.python_files("shared")
        for node in checkout.tree(path).body
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
        and not node.name.startswith("_")
        and not ast.get_docstring(node)
    ]
    assert not missing, "\n".join(missing)


def test_modules_say_what_they_are() -> None:
    missing = [
        relative(path)
        for path in checkout.python_files("shared", "papers", "benchmarks", "tests")
        if path.name != "__init__.py" and not ast.get_docstring(checkout.tree(path))
    ]
    assert not missing, f"no module docstring: {missing}"


def test_no_unsafe_or_hiding_code() -> None:
    """No pickle in any form, no exception caught without a name, no YAML dialect but DVC's."""
    for path in checkout.python_files():
        banned = {"pickle", "cPickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "yaml"}
        wrong = {name.split(".")[0] for name in checkout.imported_modules(path)} & banned
        assert not wrong, f"{relative(path)} imports {wrong}"
        for node in ast.walk(checkout.tree(path)):
            where = f"{relative(path)}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.ExceptHandler):
                assert node.type is not None, f"{where}: bare except"
            if isinstance(node, ast.Call):
                assert_safe_call(node, where)


def assert_safe_call(call: ast.Call, where: str) -> None:
    """`torch.load` reads weights only, `numpy.load` no objects, and no command goes through a shell."""
    function = ast.unparse(call.func)
    keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
    if function == "torch.load":
        assert keywords.get("weights_only") == "True", f"{where}: torch.load without weights_only=True"
    assert keywords.get("allow_pickle") in (None, "False"), f"{where}: allow_pickle"
    assert keywords.get("shell") in (None, "False"), f"{where}: shell=True"
    oracle = where.startswith("tests/") and function == "eval"  # Python's own answer, of a test's own text
    assert oracle or function not in ("eval", "exec", "os.system"), f"{where}: {function}"


# Put together here so that this file does not hold what it looks for.
LEFTOVERS = re.compile("|".join(("TO" + "DO", "FIX" + "ME", "X" + "XX")))
REGISTRIES = re.compile(
    "|".join(("py" + r"pi\.org", "python" + r"hosted\.org", "npm" + r"js\.(org|com)", "deb" + r"ian\.org"))
)


def test_no_leftovers_and_no_registry_hosts() -> None:
    """Packages come from whatever index a machine is set up with, so no file names one."""
    for path in checkout.files():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        for number, line in enumerate(text.splitlines(), start=1):
            assert not REGISTRIES.search(line), f"{relative(path)}:{number} names a package registry"
            if path.suffix in (".py", ".sh", ".yaml", ".toml", ".j2", ".md"):
                assert not LEFTOVERS.search(line), f"{relative(path)}:{number} was left unfinished"


def test_no_module_without_a_subject() -> None:
    for path in checkout.python_files("shared", "papers"):
        assert path.stem not in ("utils", "util", "helpers", "misc", "common"), (
            f"{relative(path)}: name it after what it does"
        )
