"""Slides: what is embedded, what is refused, and, where Node and Chromium are there, the built pages."""

import base64
import shutil
import subprocess
from pathlib import Path

import pytest

from shared.errors import UserError
from shared.paths import ROOT
from shared.report import publish, slides
from tests.shared import fabricated

PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg=="
)

installed = pytest.mark.skipif(
    shutil.which("node") is None or not (ROOT / "node_modules/.bin/marp").exists(),
    reason="Marp is not installed: npm ci",
)
browser = pytest.mark.skipif(slides.find_browser() is None, reason="no Chromium on the PATH")


def test_figures_become_data_and_addresses_stay(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(PIXEL)
    text = slides.embed("![h:40](a.png) ![x](https://example.org/b.png) [a link](a.png)", tmp_path)
    data = base64.b64encode(PIXEL).decode()
    assert text == f"![h:40](data:image/png;base64,{data}) ![x](https://example.org/b.png) [a link](a.png)"


@pytest.mark.parametrize(
    ("name", "message"), [("gone.png", "is missing, but the slides show it"), ("a.svg", "slides hold")]
)
def test_a_figure_that_cannot_be_shown_is_named(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        slides.embed(f"![x]({name})", tmp_path)


@pytest.mark.parametrize(
    "html",
    [
        '<img src="https://a.example/x.png">',
        "<script src=//a.example/x.js>",
        '<link rel="stylesheet" href="http://a.example/x.css">',
        "<style>@import 'https://a.example/x.css';</style>",
        "<style>a{background:url(https://a.example/x.png)}</style>",
        '<section style="background-image:url(&quot;https://a.example/x.png&quot;)">',
    ],
)
def test_what_would_be_fetched_is_found(html: str) -> None:
    (found,) = slides.outside_references(html)
    assert "//a.example/x." in found


def test_links_and_data_are_not_fetched() -> None:
    html = '<a href="https://a.example/">x</a><img src="data:image/png;base64,AA//BB"><svg xmlns="http://www.w3.org/2000/svg">'
    assert slides.outside_references(html) == []


def deck(tmp_path: Path) -> Path:
    """The published slides of the made-up paper."""
    fabricated.make(tmp_path)
    publish.publish(["nvae"], root=tmp_path)
    return tmp_path / "reports/nvae/slides.md"


def test_missing_tools_are_one_line_with_the_cure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = deck(tmp_path)
    monkeypatch.setattr(slides.shutil, "which", lambda name: None)
    with pytest.raises(UserError, match=r"slides need Node\.js"):
        slides.build(source, tmp_path / "x.html", tmp_path)
    monkeypatch.setattr(slides.shutil, "which", lambda name: "/bin/true")
    with pytest.raises(UserError, match="marp is missing; run `npm ci`"):
        slides.build(source, tmp_path / "x.html", tmp_path)
    with pytest.raises(UserError, match=r"cannot read .*gone\.md"):
        slides.build(tmp_path / "gone.md", tmp_path / "x.html", tmp_path)
    monkeypatch.setenv("CHROME_PATH", str(tmp_path / "no-browser"))
    with pytest.raises(UserError, match=r"CHROME_PATH=.* is not a file"):
        slides.find_browser()


def test_a_failure_of_marp_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = deck(tmp_path)
    program = tmp_path / "node_modules/.bin/marp"
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\necho 'it broke' >&2\nexit 3\n")
    program.chmod(0o755)
    monkeypatch.setattr(slides.shutil, "which", lambda name: "/bin/true" if name == "node" else None)
    with pytest.raises(UserError, match=r"Marp could not make slides\.html: it broke"):
        slides.build(source, tmp_path / "x.html", tmp_path)
    assert not (tmp_path / "x.html").exists()


@installed
def test_html_is_one_file_with_drawn_formulas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slides, "find_browser", lambda: None)
    source = deck(tmp_path)
    (html,) = slides.build(source, tmp_path / "out/nvae.html")
    text = html.read_text()
    assert slides.outside_references(text) == []
    assert text.count("<section") == 3
    assert "<mjx-container" in text
    assert "data:image/png;base64," in text
    assert "@theme seminar" in text or "--accent:#0072b2" in text.replace(" ", "")
    source.write_text(source.read_text() + "\n![x](https://example.org/x.png)\n")
    with pytest.raises(UserError, match=r"would fetch https://example\.org/x\.png"):
        slides.build(source, tmp_path / "out/nvae.html")


@installed
@browser
@pytest.mark.slow
def test_pdf_has_every_page(tmp_path: Path) -> None:
    html, pdf = slides.build(deck(tmp_path), tmp_path / "nvae.html")
    assert pdf.read_bytes().startswith(b"%PDF")
    assert html.is_file()
    if shutil.which("pdftotext"):
        done = subprocess.run(["pdftotext", str(pdf), "-"], capture_output=True, text=True, check=True)
        assert done.stdout.count("\f") == 3  # one form feed a page
        assert "The line falls." in done.stdout


def test_the_theme_has_its_name() -> None:
    """Marp finds a theme by this comment; the front matter of every deck names it."""
    assert "@theme seminar" in slides.THEME.read_text()
