"""`dvc repro papers/<name>` works under that name, and the committed results belong to the committed code."""

import configparser
import resource
from pathlib import Path

import pytest

from shared import pipelines, settings
from shared.data import manifest
from shared.errors import UserError
from shared.paths import ROOT
from tests import checkout

every_paper = pytest.mark.parametrize("name", checkout.PAPERS)
UP_TO_DATE = "Data and pipelines are up to date."
#: To find nothing to do may take 3 s on two idle cores. DVC works on one of them, so the limit is one of processor
#: time: wall-clock time would measure the neighbours, which here is another test on the second core.
#: A command that only waits, such as for a lock, is ended by the time limit of `checkout.run`.
MOST_PROCESSOR_SECONDS_WITHOUT_WORK = 3


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tracked files alone: no data, no cache, no states of interrupted runs."""
    return checkout.clone(tmp_path_factory.mktemp("clone") / "checkout")


def test_dvc_sends_nothing_home() -> None:
    config = configparser.ConfigParser()
    config.read_string("\n".join(line.strip() for line in (ROOT / ".dvc" / "config").read_text().splitlines()))
    assert not config.getboolean("core", "analytics")
    assert not config.getboolean("core", "check_update")


@every_paper
def test_the_folder_is_the_name_of_the_pipeline(name: str, clone: Path) -> None:
    """DVC reads a plain argument as a stage's name; that a name may hold a slash is nowhere promised."""
    output = checkout.run(clone, "dvc", "repro", "--dry", "--force", "--allow-missing", f"papers/{name}").stdout
    for stage in pipelines.of_paper(name):
        assert f"'{stage.name}'" in output, f"`dvc repro papers/{name}` does not run {stage.name}"
    assert f"'papers/{name}'" in output


@every_paper
def test_results_belong_to_the_code(name: str, clone: Path) -> None:
    """In a clone without data nothing is left to do: the locks hold the hashes of code, parameters and results."""
    output = checkout.run(clone, "dvc", "repro", "--dry", "--allow-missing", f"papers/{name}").stdout
    stale = [line for line in output.splitlines() if line.startswith("Running stage")]
    assert not stale, f"changed since its results were made: {stale}; run `dvc repro papers/{name}` and commit"
    assert UP_TO_DATE in output


@every_paper
def test_nothing_to_do_takes_no_time(name: str, clone: Path) -> None:
    """The better of two runs: the first reads DVC and the files for the first time, and any one can be disturbed."""
    runs = [timed(clone, "dvc", "repro", "--dry", "--allow-missing", f"papers/{name}") for _ in range(2)]
    if UP_TO_DATE not in runs[0][1]:
        pytest.skip("there is something to do: test_results_belong_to_the_code says what")
    seconds = min(runs)[0]
    assert seconds < MOST_PROCESSOR_SECONDS_WITHOUT_WORK, f"{seconds:.1f} s of one core to find nothing to do"


def timed(folder: Path, *command: str) -> tuple[float, str]:
    """Processor seconds of a command with all its children, and what it printed."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    output = checkout.run(folder, *command, check=False).stdout
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, output


def test_processor_time_is_that_of_the_command(tmp_path: Path) -> None:
    """The clock of the test above: work counts, waiting does not."""
    busy, _ = timed(tmp_path, "python", "-c", "import time\nwhile time.process_time() < 1: pass")
    idle, _ = timed(tmp_path, "python", "-c", "import time; time.sleep(1)")
    assert busy > 0.9 > idle


@every_paper
def test_every_stage_is_locked(name: str) -> None:
    locked = settings.read_yaml(ROOT / "papers" / name / "dvc.lock")["stages"]
    expected = {stage.name.partition(":")[2] for stage in pipelines.of_paper(name)}
    assert set(locked) == expected


@every_paper
def test_small_results_are_in_git(name: str) -> None:
    """Whoever reads the repository sees numbers and figures without DVC; only weights stay in DVC's cache."""
    tracked = set(checkout.files())
    text = [x for x in pipelines.of_paper(name) for x in x.outputs if x.suffix in (".json", ".md", ".csv", ".png")]
    assert text
    assert not [path for path in text if path not in tracked], "give these `cache: false` and add them to git"


@every_paper
def test_data_sets_of_a_paper_are_known(name: str) -> None:
    """`make reproduce` fetches what this names, so each has to be a set of the catalogue."""
    for data_set in pipelines.data_sets(name):
        known = (manifest.FOLDER / f"{data_set}.tsv").is_file()
        assert known, f"papers/{name} depends on the set {data_set}, of which nobody knows the checksums"


def test_unknown_paper_is_one_line() -> None:
    with pytest.raises(UserError, match="no_such_paper") as caught:
        pipelines.of_paper("no_such_paper")
    assert "\n" not in str(caught.value)


def test_broken_pipeline_is_one_line(tmp_path: Path) -> None:
    checkout.run(tmp_path, "dvc", "init", "--no-scm", "--quiet")
    (tmp_path / "dvc.yaml").write_text("stages:\n  a:\n    command: echo\n")
    with pytest.raises(UserError, match=r"dvc\.yaml") as caught:
        pipelines.stages(tmp_path)
    assert "\n" not in str(caught.value)


def test_stages_as_dvc_reads_them(tmp_path: Path) -> None:
    """Matrices are expanded, templates filled in, paths absolute, and parameters are no files."""
    checkout.run(tmp_path, "dvc", "init", "--no-scm", "--quiet")
    folder = tmp_path / "papers" / "nvae"
    folder.mkdir(parents=True)
    (folder / "params.yaml").write_text("preset: laptop\nseeds: [0, 1]\n")
    (folder / "dvc.yaml").write_text(
        "stages:\n  train:\n    wdir: ../..\n    matrix:\n      seed: ${seeds}\n"
        "    cmd: python -m papers.nvae.train --seed ${item.seed}\n"
        "    params:\n      - papers/nvae/params.yaml:\n        - preset\n"
        "    deps:\n      - shared/data/manifests/mnist.tsv\n      - shared/data/manifests/cifar10.tsv\n"
        "      - papers/nvae/train.py\n"
        "    outs:\n      - papers/nvae/runs/${preset}/seed${item.seed}.pt\n"
    )
    first, second = pipelines.of_paper("nvae", tmp_path)
    assert (first.name, second.name) == ("papers/nvae/dvc.yaml:train@0", "papers/nvae/dvc.yaml:train@1")
    assert first.command == "python -m papers.nvae.train --seed 0"
    assert first.folder == tmp_path
    assert second.outputs == (tmp_path / "papers/nvae/runs/laptop/seed1.pt",)
    assert set(first.dependencies) == {
        tmp_path / x
        for x in (
            "shared/data/manifests/mnist.tsv",
            "shared/data/manifests/cifar10.tsv",
            "papers/nvae/train.py",
        )
    }
    assert pipelines.data_sets("nvae", tmp_path) == ("cifar10", "mnist")
    assert pipelines.existing(tmp_path) == ("nvae",)
