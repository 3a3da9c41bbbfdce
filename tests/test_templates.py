"""No measured number is typed by hand: in a paper's templates, decimal numbers come from the records alone."""

import re
from pathlib import Path

import pytest

from shared.paths import PAPERS, ROOT

NAMES = ("report.md.j2", "slides.md.j2")
TEMPLATES = sorted(path for name in PAPERS for file in NAMES if (path := ROOT / "papers" / name / file).is_file())

#: What may hold a decimal number that is no result of ours: formulas, code, addresses, and the place of something.
#: In this order: a dollar inside code opens no formula.
ALLOWED = (
    r"\A---\n.*?\n---\n",  # front matter
    r"<!--.*?-->",
    r"\{#.*?#\}",
    r"```.*?```",
    r"`[^`\n]*`",
    r"\$\$.*?\$\$",
    r"(?<!\\)\$[^$\n]+\$",
    r"\]\([^)]*\)",
    r"https?://\S+",
    r"arXiv:\d{4}\.\d{4,5}",
    r"(?i:\b(?:sections?|sec\.|tables?|figures?|fig\.|equations?|eq\.|appendix|algorithm|chapter|version)\s+)[A-Z]?\.?\d+(?:\.\d+)+",
)
CALL = re.compile(r"\{\{.*?\}\}|\{%.*?%\}", re.DOTALL)
CAPTION = re.compile(r"figure\(\s*(?:\"[^\"]*\"|'[^']*')\s*,\s*(\"[^\"]*\"|'[^']*')")
DECIMAL = re.compile(r"(?<![\w.])\d+\.\d+(?!\.?\d)")


def blank(match: re.Match[str]) -> str:
    """As many line ends as the match has, so that line numbers stay."""
    return "\n" * match.group(0).count("\n")


def caption_only(match: re.Match[str]) -> str:
    """Of a call, what a reader sees as prose: the captions of figures."""
    captions = " ".join(found.group(1) for found in CAPTION.finditer(match.group(0)))
    return captions + blank(match)


def typed_numbers(text: str) -> list[str]:
    """Every decimal number of a template's prose, as `line: number`."""
    text = CALL.sub(caption_only, text)
    for pattern in ALLOWED:
        text = re.sub(pattern, blank, text, flags=re.DOTALL)
    return [f"{number}: {found}" for number, line in enumerate(text.splitlines(), 1) for found in DECIMAL.findall(line)]


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_no_number_is_typed_by_hand(path: Path) -> None:
    found = typed_numbers(path.read_text(encoding="utf-8"))
    assert not found, f"{path}: take these from the records, {{{{ value(...) }}}}: {found}"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("We reach 81.4 nats.", ["1: 81.4"]),
        ("a\n\n| x | 3.16 |", ["3: 3.16"]),
        ("**-1.5** and 95.2 %", ["1: 1.5", "1: 95.2"]),
        ("{{ value('x') }}\nis {{ a }} 2.5", ["2: 2.5"]),
        ('{{ figure("a.png", "The loss falls to 81.4.") }}', ["1: 81.4"]),
        ("{# a note #}{{\n\n1.5 }} 1.25.", ["3: 1.25"]),
        ("costs 5$ and 2.5 nats", ["1: 2.5"]),
    ],
)
def test_the_search_finds_them(text: str, found: list[str]) -> None:
    assert typed_numbers(text) == found


@pytest.mark.parametrize(
    "text",
    [
        "{{ value('nll', form='.2f') }} {{ paper_table([{'paper': 3.16}]) }}",
        "$\\sigma = 0.5$ and\n$$\n\\beta = 0.9\n$$",
        "`lr=0.01` in section 3.2, table A.1.2, eq. 2.14, [x](https://a.example/1.5) arXiv:2007.03898",
        "```\nlambda: 0.01\n```\n<!-- 1.5 -->",
        "seeds 0, 1 and 2; 3 groups; torch 2.13.0; 95 % of 10.",
        "---\nversion: 1.5\n---\nprose",
        '{{ figure("a1.5.png", "See it.") }}',
    ],
)
def test_the_search_leaves_the_rest(text: str) -> None:
    assert typed_numbers(text) == []
