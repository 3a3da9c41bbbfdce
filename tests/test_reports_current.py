"""No report is stale: drawn again from the committed records, each comes out as it is committed."""

from pathlib import Path

import pytest

from shared.paths import ROOT
from tests import checkout

REPORTS = tuple(name for name in checkout.PAPERS if (ROOT / "reports" / name / "README.md").is_file())


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tracked files alone, so that a report cannot rest on a record that only this machine has."""
    return checkout.clone(tmp_path_factory.mktemp("clone") / "checkout")


def test_every_paper_has_a_report() -> None:
    assert set(REPORTS) == set(checkout.PAPERS)


@pytest.mark.skipif(not REPORTS, reason="no report yet")
def test_index_and_front_page_are_current(clone: Path) -> None:
    """Without names every paper is drawn, and with them the tables that hold numbers of all."""
    checkout.run(clone, "python", "-m", "shared.report.publish", "--check")


@pytest.mark.parametrize("name", REPORTS)
def test_report_is_what_the_records_say(name: str, clone: Path) -> None:
    checkout.run(clone, "python", "-m", "shared.report.publish", name, "--check")


@pytest.mark.parametrize("name", REPORTS)
def test_a_changed_number_is_noticed(name: str, clone: Path) -> None:
    """The check can fail: one digit typed into the report by hand is enough."""
    report = clone / "reports" / name / "README.md"
    committed = report.read_text()
    digit = next(i for i in range(len(committed) // 2, len(committed)) if committed[i].isdigit())
    report.write_text(committed[:digit] + str((int(committed[digit]) + 1) % 10) + committed[digit + 1 :])
    try:
        assert (
            checkout.run(clone, "python", "-m", "shared.report.publish", name, "--check", check=False).returncode != 0
        )
    finally:
        report.write_text(committed)
