"""A stranger's first minutes: a clean clone, `dvc repro papers/<name>`, a report; with small data and few steps."""

from pathlib import Path

import pytest
from ruamel.yaml import YAML

from shared import claims, pipelines
from shared.files import read_json
from shared.provenance import read_records
from tests import checkout

UP_TO_DATE = "Data and pipelines are up to date."
# The preset promises 20 s on two idle cores; here a stage has one core of a machine that is busy with other tests.
MOST_SECONDS_OF_A_STAGE = 60
CLAIM_KEYS = {"id", "statement", "source", "paper", "ours", "interval", "n", "spread_over", "preset", "verdict", "why"}

WRITE_SAMPLES = "from pathlib import Path; from shared.data.samples import write_samples; write_samples(Path('data'))"
WHERE = "import shared.paths, papers; print(shared.paths.ROOT, *papers.__path__, sep='\\n')"


def smoke_clone(name: str, target: Path) -> Path:
    """A clean clone with the samples in the place of the data and the smoke preset switched on."""
    clone = checkout.clone(target)
    imported = [Path(line) for line in checkout.run(clone, "python", "-c", WHERE).stdout.splitlines()]
    assert imported == [clone, clone / "papers"], "the clone has to import its own code, not the checkout's"
    checkout.run(clone, "python", "-c", WRITE_SAMPLES)
    params = clone / "papers" / name / "params.yaml"
    yaml = YAML()
    document = yaml.load(params.read_text())
    document["preset"] = "smoke"
    for arms in ("arms_to_run", "ablation_seeds"):  # a few arms and seeds prove the pipeline as well as all of them
        if arms in document:
            document[arms] = document[arms][:3]
    with params.open("w") as file:
        yaml.dump(document, file)
    return clone


@pytest.mark.slow
@pytest.mark.parametrize("name", checkout.PAPERS)
def test_pipeline_in_a_clean_clone(name: str, tmp_path: Path) -> None:
    clone = smoke_clone(name, tmp_path / "checkout")
    output = checkout.run(clone, "dvc", "repro", f"papers/{name}", timeout=900).stdout
    stages = pipelines.of_paper(name, clone)
    for stage in stages:
        assert f"Running stage '{stage.name}'" in output, f"{stage.name} did not run"
        missing = [str(path) for path in stage.outputs if not path.exists()]
        assert not missing, f"{stage.name} did not write {missing}"

    records = read_records(clone / "papers" / name / "runs" / "smoke" / "provenance")
    assert records, "no stage left a record of where its numbers come from"
    for record in records:
        assert record.preset == "smoke"
        assert record.wall_s <= MOST_SECONDS_OF_A_STAGE, f"{record.stage} took {record.wall_s} s"

    rows = read_json(clone / "reports" / name / "claims.json")
    assert rows
    for claim in rows:
        assert set(claim) >= CLAIM_KEYS, f"{claim.get('id')} lacks {CLAIM_KEYS - set(claim)}"
        assert claim["verdict"] in claims.VERDICTS
    assert "smoke" in (clone / "reports" / name / "README.md").read_text()

    again = checkout.run(clone, "dvc", "repro", f"papers/{name}").stdout
    assert "Running stage" not in again, "the second run did something"
    assert UP_TO_DATE in again
