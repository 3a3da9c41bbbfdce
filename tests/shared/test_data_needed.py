"""Which data sets a preset needs: its own, those of the comparisons, and no more."""

from pathlib import Path

import pytest

from shared import pipelines
from shared.data.needed import needed
from shared.errors import UserError
from shared.paths import ROOT
from shared.settings import read_yaml
from tests import checkout

PARAMS = """
preset: laptop
seeds: [0]
laptop: {data: mnist, steps: 1}
gpu: {data: fashion_mnist, steps: 1}
gpu_cifar10: {data: cifar10, steps: 1}
ablation: {COMPARED steps: 1}
"""


def paper(root: Path, compared: str = "") -> None:
    """A paper without stages, whose comparisons use the set in `compared`."""
    (root / "papers" / "nvae").mkdir(parents=True)
    (root / "papers" / "nvae" / "params.yaml").write_text(PARAMS.replace("COMPARED", compared))


def test_a_preset_needs_its_own_set_and_that_of_the_comparisons(tmp_path: Path) -> None:
    paper(tmp_path, "data: mnist,")
    assert needed("nvae", root=tmp_path) == ("mnist",)
    assert needed("nvae", "gpu", tmp_path) == ("fashion_mnist", "mnist")
    assert needed("nvae", "gpu_cifar10", tmp_path) == ("cifar10", "mnist")


def test_comparisons_without_a_set_use_the_presets(tmp_path: Path) -> None:
    paper(tmp_path)
    assert needed("nvae", "gpu_cifar10", tmp_path) == ("cifar10",)


def test_an_unknown_preset_or_paper_is_one_line(tmp_path: Path) -> None:
    paper(tmp_path)
    with pytest.raises(UserError, match=r"no preset .gpuu.; there are: laptop, gpu, gpu_cifar10$"):
        needed("nvae", "gpuu", tmp_path)
    with pytest.raises(UserError, match=r"cannot read .*papers/jem/params\.yaml"):
        needed("jem", root=tmp_path)


def test_a_paper_whose_blocks_name_no_set_needs_what_its_stages_depend_on(tmp_path: Path) -> None:
    checkout.run(tmp_path, "dvc", "init", "--no-scm", "--quiet")
    folder = tmp_path / "papers" / "nvae"
    folder.mkdir(parents=True)
    (folder / "params.yaml").write_text("preset: laptop\nlaptop: {steps: 1}\n")
    (folder / "dvc.yaml").write_text(
        "stages:\n  train:\n    wdir: ../..\n    cmd: python -m papers.nvae.train\n"
        "    deps:\n      - shared/data/manifests/speech.tsv\n"
    )
    assert needed("nvae", root=tmp_path) == ("speech",)


@pytest.mark.parametrize("name", checkout.PAPERS)
def test_stages_depend_on_every_set_that_a_preset_needs(name: str) -> None:
    """Else a changed checksum, that is other data, would leave the results of that preset as they are."""
    blocks = read_yaml(ROOT / "papers" / name / "params.yaml")
    presets = [key for key, block in blocks.items() if isinstance(block, dict) and key not in ("ablation", "arms")]
    assert len(presets) >= 4
    for preset in presets:
        assert set(needed(name, preset)) <= set(pipelines.data_sets(name)), preset
