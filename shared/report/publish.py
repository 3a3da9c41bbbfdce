"""Writes a paper's claims.json, README.md and slides.md, and refreshes the index of all papers.

    python -m shared.report.publish nvae                   # from the preset that params.yaml names
    python -m shared.report.publish nvae --preset gpu
    python -m shared.report.publish --check                # writes nothing; exit status 1 and a line per stale file

Everything is worked out before anything is written. Two calls with the same records write the same bytes.
"""

import argparse
import json
import sys
from pathlib import Path

from shared import errors
from shared.errors import UserError
from shared.files import write_text
from shared.paths import PAPERS, ROOT
from shared.report import index, render
from shared.report.records import gather

__all__ = ["outputs", "publish", "stale"]


def outputs(names: list[str], preset: str | None = None, root: Path = ROOT) -> dict[Path, str]:
    """The text of every file that publishing these papers writes, the index and the root README included.

    Args:
        names: of papers.
        preset: for all of them; default: each paper's own from params.yaml.
        root: the checkout.

    Raises:
        UserError: records or templates are malformed, or the root README lacks the markers of its blocks.
    """
    texts: dict[Path, str] = {}
    fresh: dict[str, index.Entry] = {}
    for name in names:
        records = gather(name, preset, root)
        texts[records.folder / "claims.json"] = (
            json.dumps(records.rows, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        )
        texts[records.folder / "README.md"] = render.report(records)
        slides = render.slides(records)
        if slides is not None:
            texts[records.folder / "slides.md"] = slides
        fresh[name] = index.entry(name, root, records.rows)
    entries = [fresh.get(name) or index.entry(name, root) for name in PAPERS]
    texts[root / "reports" / "README.md"] = index.page(entries)
    readme = root / "README.md"
    if not readme.is_file():
        raise UserError(f"{readme} is missing; the table of the papers is written into it")
    text = index.replace_block(readme, readme.read_text(encoding="utf-8"), "papers", index.table(entries, "reports/"))
    texts[readme] = index.replace_block(readme, text, "gallery", index.gallery(entries, "reports/"))
    return texts


def publish(names: list[str], preset: str | None = None, root: Path = ROOT) -> list[Path]:
    """Write what has changed of `outputs`; return the paths written."""
    written = []
    for path, text in outputs(names, preset, root).items():
        if _differs(path, text):
            write_text(path, text)
            written.append(path)
    return written


def stale(names: list[str], preset: str | None = None, root: Path = ROOT) -> list[str]:
    """One line for every file that differs from what would be written; nothing is written."""
    cure = "run `python -m shared.report.publish`"
    return [
        f"{path.relative_to(root)} is {'out of date' if path.exists() else 'missing'}; {cure}"
        for path, text in outputs(names, preset, root).items()
        if _differs(path, text)
    ]


def begun(root: Path = ROOT) -> list[str]:
    """The papers that have claims, in order."""
    return [name for name in PAPERS if (root / "papers" / name / "claims.yaml").is_file()]


def _differs(path: Path, text: str) -> bool:
    return not path.is_file() or path.read_text(encoding="utf-8") != text


def main(arguments: list[str] | None = None, root: Path = ROOT) -> None:
    """The command line; see the module's text."""
    parser = argparse.ArgumentParser(
        prog="python -m shared.report.publish", description="Write reports and their index."
    )
    parser.add_argument("papers", nargs="*", metavar="PAPER", help="default: every paper that has claims")
    parser.add_argument("--preset", help="draw the report from this preset instead of the one in params.yaml")
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a file is out of date")
    given = parser.parse_args(arguments)
    names = given.papers or begun(root)
    if given.check:
        lines = stale(names, given.preset, root)
        print("\n".join(lines) or "reports, slides and index agree with the records")
        sys.exit(1 if lines else 0)
    for path in publish(names, given.preset, root):
        print(f"wrote {path.relative_to(root)}")


if __name__ == "__main__":
    errors.run(main)
