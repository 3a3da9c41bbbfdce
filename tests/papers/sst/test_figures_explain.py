"""Figures of learning to explain: all of them from full results, none from missing ones, and where the boxes are."""

from pathlib import Path
from typing import Any

import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from papers.sst import explain, figures_explain
from papers.sst.explain_arms import RELAXATIONS as TRAINED
from papers.sst.figures_explain import COLUMNS, READ, RELAXATIONS, draw, wrapped
from shared.report.style import COLOURS
from shared.results import Metrics, put

PUBLIC = {f"explain_{name}.png" for name in ("planted", "selectors", "texts", "span", "sentences")}


def results() -> Metrics:
    """Numbers for everything that the stage plans."""
    metrics: Metrics = {}
    for number, key in enumerate(explain.plan([0, 1])):
        for measure in ("mse_x100", "precision") if key.task == "planted" else ("mse_x100",):
            put(metrics, f"{key.task}_k{key.k}_{measure}", key.arm.name, f"seed{key.seed}", 2 + number % 7 + key.seed)
        put(metrics, f"{key.task}_k{key.k}_mse_x100", "mean_rating", "exact", 9.0)
    return metrics


def item(words: int = 30, selectors: tuple[str, ...] = ("simple",)) -> dict[str, Any]:
    """A made-up text of which every arm selects the words 3, 4 and 20, with the span 2..9 and one opinion."""
    made = {"predicted": 0.25, "selected": [3, 4, 20]}
    return {
        "words": [f"w{i}$_" for i in range(words)],
        "rating": 0.5,
        "span": [2, 10],
        "scores": [0.0] * (words - 1) + [1.0],
        "arms": {f"{selector}_{name}": made for selector in selectors for name in TRAINED},
    }


def test_every_relaxation_has_a_look_of_its_own() -> None:
    assert tuple(RELAXATIONS) == TRAINED
    assert len({look.colour for look in RELAXATIONS.values()}) == len({look.marker for look in RELAXATIONS.values()})


def test_all_figures_and_movie_reviews_apart(tmp_path: Path) -> None:
    examples = {
        "planted": {"k": 3, "items": [item(selectors=("simple", "complex"))] * 3},
        "sentences": {"items": [item()]},
    }
    draw(tmp_path / "figures", tmp_path / "build", results(), examples, {"items": [item(90)]})
    assert {path.name for path in (tmp_path / "figures").iterdir()} == PUBLIC
    assert [path.name for path in (tmp_path / "build").iterdir()] == ["explain_movies.png"]


def test_what_was_not_measured_is_not_drawn(tmp_path: Path) -> None:
    draw(tmp_path / "figures", tmp_path / "build", {}, {}, {})
    assert not list(tmp_path.iterdir())
    few = {
        "planted_k5_mse_x100": {"simple_l2x": {"seed0": 3.0}},
        "sentences_k5_mse_x100": {"simple_l2x": {"seed0": 1.0}},
    }
    sparse = item()
    sparse["arms"] = {"simple_marginals": {"predicted": 0.1, "selected": [1]}}
    draw(
        tmp_path / "few",
        tmp_path / "build",
        few,
        {"planted": {"items": [sparse]}, "sentences": {"items": []}},
        {"items": []},
    )
    assert {path.name for path in (tmp_path / "few").iterdir()} == PUBLIC - {"explain_sentences.png"}


def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Figures instead of files."""
    kept: list[Figure] = []
    monkeypatch.setattr(figures_explain, "save", lambda figure, path: kept.append(figure))
    return kept


def test_selected_words_stand_in_boxes_of_their_length(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = drawn(monkeypatch)
    figures_explain.texts(tmp_path / "x.png", {"items": [item()]}, 1)
    (axes,) = kept[0].axes
    boxes = [(to_hex(patch.get_facecolor()).upper(), patch.get_width()) for patch in axes.patches]
    assert len(boxes) == 3 * len(READ)
    assert {colour for colour, _ in boxes} == {to_hex(RELAXATIONS[name].colour).upper() for name in READ}
    assert [width for _, width in boxes[:3]] == pytest.approx([4.7, 4.7, 5.7])
    for patch in axes.patches:
        inside = [text for text in axes.texts if text.get_text() in ("w3$_", "w4$_", "w20$_")]
        assert any(patch.get_x() < text.get_position()[0] < patch.get_x() + 1 for text in inside)


def test_marks_tell_inside_from_outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = drawn(monkeypatch)
    figures_explain.span(tmp_path, {"items": [item()]})
    lower = kept[0].axes[1]
    found = {to_hex(line.get_color()).upper(): list(line.get_xdata()) for line in lower.lines[:2]}
    assert found == {COLOURS["blue"].upper(): [3, 4], COLOURS["vermilion"].upper(): [20]}


def test_lines_are_filled_and_lose_no_word() -> None:
    words = ["a" * (1 + i % 13) for i in range(100)] + ["b" * 300]
    lines = list(wrapped(words, {0, 50}))
    assert [word for line in lines for word, _ in line] == [word[: COLUMNS // 2] for word in words]
    assert [i for i, (_, boxed) in enumerate(pair for line in lines for pair in line) if boxed] == [0, 50]
    assert all(sum(len(word) + 1 for word, _ in line) <= COLUMNS for line in lines)
    assert len(lines) <= 1 + sum(min(len(word), COLUMNS // 2) + 1 for word in words) // (COLUMNS - 13)
