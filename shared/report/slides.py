"""Builds the slides of a paper: `reports/<name>/slides.md` becomes `build/slides/<name>.html` and `.pdf`.

    python -m shared.report.slides nvae

The HTML is one file: figures are inside it, formulas are drawn when it is built, nothing is fetched when it is shown.
The PDF needs Chromium; without one it is left out, with a line that says so.
"""

import base64
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from shared import errors
from shared.errors import UserError
from shared.files import write_bytes
from shared.paths import PAPERS, ROOT

__all__ = ["build", "embed", "find_browser", "outside_references"]

THEME = Path(__file__).with_name("theme.css")
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
KINDS = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".gif": "image/gif"}
SECONDS = 180.0


def build(source: Path, target: Path, root: Path = ROOT) -> list[Path]:
    """Turn one Markdown presentation into HTML and, where Chromium is found, PDF.

    Args:
        source: a Marp Markdown file; figures are named relative to it.
        target: of the HTML; the PDF lies beside it.
        root: the checkout, where `npm ci` has installed Marp.

    Returns:
        The files written: HTML, and PDF if there is a browser.

    Raises:
        UserError: the source or a figure is missing, Marp is not installed or fails, or the HTML is not self-contained.
    """
    try:
        text = embed(source.read_text(encoding="utf-8"), source.parent)
    except OSError as error:
        raise UserError(
            f"cannot read {source}: {error.strerror or error}; run `python -m shared.report.publish`"
        ) from None
    browser = find_browser()
    written = []
    with tempfile.TemporaryDirectory() as scratch:
        page = Path(scratch) / "slides.md"
        page.write_text(text, encoding="utf-8")
        for path in [target] + ([target.with_suffix(".pdf")] if browser else []):
            made = page.with_suffix(path.suffix)
            _marp(page, made, browser, root)
            if path.suffix == ".html":
                found = outside_references(made.read_text(encoding="utf-8"))
                if found:
                    raise UserError(
                        f"{source}: the slides would fetch {found[0]} when shown; name a file of this checkout"
                    )
            write_bytes(path, made.read_bytes())
            written.append(path)
    return written


def embed(text: str, folder: Path) -> str:
    """Replace the figures of a Markdown text, `![...](file)`, by data URIs; those on the network stay as they are.

    Raises:
        UserError: a figure is missing in `folder`, or is no PNG, JPEG or GIF.
    """

    def data(match: re.Match[str]) -> str:
        name = match.group(2)
        if re.match(r"[a-z]+:", name):
            return match.group(0)
        path = folder / name
        if path.suffix.lower() not in KINDS:
            raise UserError(f"{path}: slides hold {', '.join(KINDS)} figures")
        if not path.is_file():
            raise UserError(f"{path} is missing, but the slides show it; run `dvc repro` for the paper")
        content = base64.b64encode(path.read_bytes()).decode("ascii")
        return f"{match.group(1)}(data:{KINDS[path.suffix.lower()]};base64,{content})"

    return re.sub(r"(!\[[^\]]*\])\(([^)\s]+)\)", data, text)


def outside_references(html: str) -> list[str]:
    """What a browser would fetch to show a page: addresses in src, in href of <link>, in url() and @import of CSS."""
    patterns = (
        r"""\bsrc\s*=\s*["']?((?:https?:)?//[^"'\s>]+)""",
        r"""<link\b[^>]*\bhref\s*=\s*["']?((?:https?:)?//[^"'\s>]+)""",
        r"""url\(\s*(?:&quot;|["'])?((?:https?:)?//[^"')&\s]+)""",
        r"""@import\s+["']((?:https?:)?//[^"']+)""",
    )
    return [found for pattern in patterns for found in re.findall(pattern, html)]


def find_browser() -> str | None:
    """The Chromium that prints the PDF: CHROME_PATH, else one on the PATH; None if there is none.

    Raises:
        UserError: CHROME_PATH names no file.
    """
    chosen = os.environ.get("CHROME_PATH")
    if chosen:
        if not Path(chosen).is_file():
            raise UserError(f"CHROME_PATH={chosen} is not a file; name the browser's program, or unset it")
        return chosen
    return next((path for path in map(shutil.which, BROWSERS) if path), None)


def _marp(source: Path, target: Path, browser: str | None, root: Path) -> None:
    program = root / "node_modules" / ".bin" / "marp"
    if shutil.which("node") is None:
        raise UserError("slides need Node.js (node and npm), which is not on the PATH; install Node 18 or later")
    if not program.exists():
        raise UserError(f"{program} is missing; run `npm ci` in {root}")
    command = [
        str(program),
        "--no-stdin",
        "--no-config-file",
        "--theme-set",
        str(THEME),
        "--output",
        str(target),
        str(source),
    ]
    environment = {**os.environ, **({"CHROME_PATH": browser} if browser else {})}
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        environment["CHROME_NO_SANDBOX"] = "1"  # Chromium refuses its sandbox to root
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise UserError(f"Marp did not finish {target.name} within {SECONDS:.0f} s") from None
    if done.returncode != 0 or not target.is_file():
        last = [line for line in done.stderr.splitlines() if line.strip()][-1:] or ["no message"]
        raise UserError(f"Marp could not make {target.name}: {last[0].strip()}")


def main() -> None:
    """Build the slides of the papers named on the command line; without names, of every paper that has slides."""
    unknown = [name for name in sys.argv[1:] if name not in PAPERS]
    if unknown:
        raise UserError(f"no paper is named {unknown[0]!r}; there are: {', '.join(PAPERS)}")
    names = sys.argv[1:] or [name for name in PAPERS if (ROOT / "reports" / name / "slides.md").is_file()]
    for name in names:
        target = ROOT / "build" / "slides" / f"{name}.html"
        written = build(ROOT / "reports" / name / "slides.md", target)
        print("\n".join(f"wrote {path.relative_to(ROOT)}" for path in written))
        if len(written) == 1:
            print(f"no PDF of {name}: no Chromium on the PATH (set CHROME_PATH to name one)")


if __name__ == "__main__":
    errors.run(main)
