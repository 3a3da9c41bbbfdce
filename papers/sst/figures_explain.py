"""Figures of learning to explain: each function draws one picture from what the stage `explain` wrote.

`Metrics` is metric -> arm -> seed -> number, errors as mean squared error times 100 and precision in percent. `Shown`
is what `explain.shown` makes: a few texts with the words that each arm selected. What was not measured is not drawn.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from shared.comparisons import Metrics
from shared.measurements import summary
from shared.report.looks import GREY, Look
from shared.report.style import COLOURS, new_figure, save

Shown = Mapping[str, Any]

KS = (5, 10, 15)
MSE, PRECISION = "mean squared error × 100", "selected words inside the span, %"

RELAXATIONS = {
    "l2x": Look("L2X", COLOURS["vermilion"], "s"),
    "softsub": Look("SoftSub", COLOURS["orange"], "D"),
    "euclidean": Look("top-k, Euclidean", COLOURS["green"], "^"),
    "categorical": Look("top-k, categorical entropy", COLOURS["purple"], "v"),
    "binary": Look("top-k, binary entropy", COLOURS["sky"], "P"),
    "marginals": Look("top-k, marginals", COLOURS["black"], "X"),
    "correlated": Look("correlated top-k", COLOURS["blue"], "o"),
}
REFERENCES = {"mean_rating": "mean rating", "random_words": "random words", "all_words": "all words"}
SELECTORS = {"simple": "simple selector", "complex": "complex selector"}
#: Whose words are shown.
READ = ("l2x", "marginals", "correlated")
#: Characters of a line of text, points of a letter, inches of a line.
COLUMNS, LETTER, LINE = 92, 13, 0.3
#: Width of a letter of the font in shares of its size.
_ADVANCE = 0.602


def draw(folder: Path, hidden: Path, metrics: Metrics, examples: Mapping[str, Shown], movies: Shown) -> None:
    """Every figure whose numbers there are.

    Args:
        folder: of the report.
        hidden: for pictures with the words of movie reviews, which may not be passed on with this project.
        metrics: of the stage.
        examples: `examples.json`, or nothing.
        movies: the movie reviews with their selected words, or nothing.
    """
    if any(measured(metrics, f"planted_k{k}_mse_x100", "simple") for k in KS):
        by_k(folder, metrics)
        by_selector(folder, metrics)
    if any(measured(metrics, f"{task}_mse_x100", "simple") for task in ("sentences_k5", "movies_k10")):
        real_texts(folder, metrics)
    if examples.get("planted", {}).get("items"):
        span(folder, examples["planted"])
    if examples.get("sentences", {}).get("items"):
        texts(folder / "explain_sentences.png", examples["sentences"], 3)
    if movies.get("items"):
        texts(hidden / "explain_movies.png", movies, 1)


def measured(metrics: Metrics, metric: str, selector: str) -> list[str]:
    """The relaxations for which there is a number."""
    return [name for name in RELAXATIONS if f"{selector}_{name}" in metrics.get(metric, {})]


def error_bar(metrics: Metrics, metric: str, arm: str) -> tuple[float, list[list[float]] | None] | None:
    """Mean and the two lengths of its 95 % interval, as `Axes.errorbar` takes them; None where nothing was measured."""
    found = summary(metrics, metric, arm)
    if found is None:
        return None
    ends = found.interval
    return found.mean, None if ends is None else [[found.mean - ends.low], [ends.high - found.mean]]


# --- numbers ---


def by_k(folder: Path, metrics: Metrics) -> None:
    """Error and precision on planted spans against the number of words, when each word is scored alone."""
    figure, axes = new_figure(12.5, 5.6, columns=2)
    for each, (measure, label) in zip(axes, (("mse_x100", MSE), ("precision", PRECISION)), strict=True):
        for number, (name, look) in enumerate(RELAXATIONS.items()):
            found = [(k, error_bar(metrics, f"planted_k{k}_{measure}", f"simple_{name}")) for k in KS]
            # Side by side: equal numbers would hide each other.
            points = [(k + 0.3 * (number - 3), *bar) for k, bar in found if bar]
            if points:
                each.plot([x for x, *_ in points], [y for _, y, _ in points], color=look.colour, linewidth=1.2)
            for x, y, half in points:
                each.errorbar(x, y, yerr=half, fmt=look.marker, color=look.colour, label=look.label)
        for name, dashes in (("mean_rating", "--"), ("random_words", ":")):
            levels = [(k, bar[0]) for k in KS if (bar := error_bar(metrics, f"planted_k{k}_{measure}", name))]
            if levels:
                each.plot(*zip(*levels, strict=True), dashes, color=GREY, label=REFERENCES[name])
        each.set_xticks(KS)
        each.set_ylim(0, 105 if measure == "precision" else None)
        each.set_xlabel("words selected, k")
        each.set_ylabel(label)
    _legend(figure, axes, 3)
    save(figure, folder / "explain_planted.png")


def by_selector(folder: Path, metrics: Metrics) -> None:
    """Error and precision of ten words of planted spans: each relaxation with the simple and the complex selector."""
    names = [name for name in RELAXATIONS if any(_at_ten(metrics, selector, name) for selector in SELECTORS)]
    figure, axes = new_figure(12.5, 0.5 * len(names) + 2.0, columns=2, sharey=True)
    for each, (measure, label) in zip(axes, (("mse_x100", MSE), ("precision", PRECISION)), strict=True):
        for selector, colour, marker, up in (("simple", "vermilion", "s", 0.13), ("complex", "blue", "o", -0.13)):
            for y, name in enumerate(reversed(names)):
                found = error_bar(metrics, f"planted_k10_{measure}", f"{selector}_{name}")
                if found:
                    look: dict[str, Any] = {"fmt": marker, "color": COLOURS[colour], "label": SELECTORS[selector]}
                    each.errorbar(found[0], y + up, xerr=found[1], **look)
        level = error_bar(metrics, f"planted_k10_{measure}", "mean_rating" if measure == "mse_x100" else "random_words")
        if level:
            each.axvline(level[0], color=GREY, linestyle="--", label="mean rating (left), random words (right)")
        each.set_xlim(0, 105 if measure == "precision" else None)
        each.set_yticks(range(len(names)), [RELAXATIONS[name].label for name in reversed(names)])
        each.set_xlabel(label)
    axes[0].set_ylabel("relaxation in training, k = 10")
    _legend(figure, axes, 3)
    save(figure, folder / "explain_selectors.png")


def real_texts(folder: Path, metrics: Metrics) -> None:
    """Bars of the test error on graded sentences and movie reviews, with what needs no selector in grey."""
    tasks = [("sentences_k5", "graded sentences, k = 5"), ("movies_k10", "movie reviews, k = 10")]
    tasks = [(task, title) for task, title in tasks if f"{task}_mse_x100" in metrics]
    rows = [
        [*REFERENCES, *(f"simple_{name}" for name in measured(metrics, f"{task}_mse_x100", "simple"))]
        for task, _ in tasks
    ]
    figure, axes = new_figure(6.6 * len(tasks), 0.42 * max(map(len, rows)) + 1.7, columns=len(tasks))
    for each, (task, title), arms in zip(axes, tasks, rows, strict=True):
        for y, arm in enumerate(reversed(arms)):
            found = error_bar(metrics, f"{task}_mse_x100", arm)
            if found:
                look = RELAXATIONS.get(arm.removeprefix("simple_"))
                each.barh(y, found[0], xerr=found[1], color=look.colour if look else "#BBBBBB", ecolor=GREY, height=0.7)
        names = [REFERENCES[arm] if arm in REFERENCES else RELAXATIONS[arm[7:]].label for arm in reversed(arms)]
        each.set_yticks(range(len(arms)), names)
        each.grid(axis="y", visible=False)
        each.set_xlim(left=0)
        each.set_title(title)
        each.set_xlabel(f"{MSE} (less is better)")
        each.set_ylabel("words that the predictor sees")
    save(figure, folder / "explain_texts.png")


def _at_ten(metrics: Metrics, selector: str, name: str) -> bool:
    return f"{selector}_{name}" in metrics.get("planted_k10_mse_x100", {})


def _legend(figure: Figure, axes: Sequence[Axes], columns: int) -> None:
    """One legend above all axes; a label that several points have comes once."""
    found: dict[str, Any] = {}
    for each in axes:
        for handle, label in zip(*each.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    figure.legend(list(found.values()), list(found), loc="outside upper center", ncols=columns)


# --- examples ---


def span(folder: Path, shown: Shown, count: int = 2) -> None:
    """Planted sequences: what each word would add, where the span is, and below it the words that each arm selected."""
    items = shown["items"][:count]
    arms = [(s, name) for s in SELECTORS for name in READ if f"{s}_{name}" in items[0]["arms"]]
    heights = [1.6, 0.36 * len(arms) + 0.3]
    figure, axes = new_figure(
        12.5, sum(heights) * len(items) + 0.9, rows=2 * len(items), sharex=True, height_ratios=heights * len(items)
    )
    for upper, lower, item in zip(axes[::2], axes[1::2], items, strict=True):
        begin, end = item["span"]
        for each in (upper, lower):
            each.axvspan(begin - 0.5, end - 0.5, color="#F0E442", alpha=0.35, linewidth=0)
            each.grid(visible=False)
        upper.axhline(0, color=GREY, linewidth=0.8)
        upper.bar(range(len(item["scores"])), item["scores"], color=GREY, width=0.8)
        upper.set_xlim(-0.9, len(item["scores"]) - 0.1)
        upper.set_ylabel("opinion")
        upper.set_title(f"rating {item['rating']:.2f}", fontsize=13)
        for y, (selector, name) in enumerate(reversed(arms)):
            made = item["arms"][f"{selector}_{name}"]
            for inside, colour, marker in ((True, COLOURS["blue"], "o"), (False, COLOURS["vermilion"], "x")):
                chosen = [x for x in made["selected"] if (begin <= x < end) == inside]
                lower.plot(chosen, [y] * len(chosen), marker, color=colour, markersize=7, markeredgewidth=2)
        labels = [f"{RELAXATIONS[name].label}, {SELECTORS[selector]}" for selector, name in reversed(arms)]
        lower.set_yticks(range(len(arms)), labels)
        lower.set_ylim(-0.6, len(arms) - 0.4)
        lower.set_ylabel("selected by")
    axes[-1].set_xlabel("position of the word in the sequence")
    marks = [
        Line2D([], [], color=COLOURS["blue"], marker="o", linestyle="", label="selected, inside the span"),
        Line2D([], [], color=COLOURS["vermilion"], marker="x", linestyle="", markeredgewidth=2, label="outside"),
        Rectangle((0, 0), 1, 1, color="#F0E442", alpha=0.35, label="the span that decides the rating"),
    ]
    figure.legend(handles=marks, loc="outside upper center", ncols=3)
    save(figure, folder / "explain_span.png")


def texts(path: Path, shown: Shown, count: int) -> None:
    """Texts with boxes around the words that L2X, top-k and correlated top-k selected, and the ratings they gave."""
    blocks: list[tuple[str, str, list[list[tuple[str, bool]]]]] = []
    for item in shown["items"][:count]:
        blocks.append((f"rating {item['rating']:.2f} (0 worst, 1 best)", "black", []))
        for name in READ:
            made = item["arms"].get(f"simple_{name}")
            if made:
                look = RELAXATIONS[name]
                lines = list(wrapped(item["words"], set(made["selected"])))
                blocks.append((f"{look.label}: predicts {made['predicted']:.2f}", look.colour, lines))
    rows = sum(1.2 + len(lines) for *_, lines in blocks)
    inch = _ADVANCE * LETTER / 72
    figure, (axes,) = new_figure(COLUMNS * inch + 0.3, rows * LINE + 0.2)
    axes.set_xlim(0, COLUMNS)
    axes.set_ylim(rows, 0)
    axes.axis("off")
    y = 0.6
    for title, colour, lines in blocks:
        axes.text(0, y, title, color=colour, fontsize=LETTER, fontweight="bold", va="center")
        y += 1
        for line in lines:
            _write(axes, y, line, colour)
            y += 1
        y += 0.2
    save(figure, path)


def wrapped(words: Sequence[str], selected: set[int]) -> Iterator[list[tuple[str, bool]]]:
    """Lines of words, each with whether it is selected, none longer than a line of the picture."""
    line: list[tuple[str, bool]] = []
    used = 0
    for i, word in enumerate(words):
        short = word[: COLUMNS // 2]
        if line and used + len(short) > COLUMNS - 1:
            yield line
            line, used = [], 0
        line.append((short, i in selected))
        used += len(short) + 1
    if line:
        yield line


def _write(axes: Axes, y: float, line: Sequence[tuple[str, bool]], colour: str) -> None:
    """One line of words in letters of equal width, boxes behind those that are selected."""
    x = 0.3
    for word, boxed in line:
        if boxed:
            axes.add_patch(Rectangle((x - 0.35, y - 0.45), len(word) + 0.7, 0.9, color=colour, alpha=0.3, linewidth=0))
        weight = "bold" if boxed else "normal"
        axes.text(
            x, y, word, fontsize=LETTER, family="DejaVu Sans Mono", va="center", fontweight=weight, parse_math=False
        )
        x += len(word) + 1
