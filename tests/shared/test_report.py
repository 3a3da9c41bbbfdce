"""Figures, tables, templates, the index and the recording of runs, on a made-up paper in a temporary folder."""

import json
from pathlib import Path
from typing import Any

import matplotlib.colors
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shared import measurements
from shared.errors import UserError
from shared.paths import PAPERS
from shared.report import blocks, index, publish, record, records, render, style, tables
from tests.shared import fabricated


@pytest.fixture
def root(tmp_path: Path) -> Path:
    fabricated.make(tmp_path)
    return tmp_path


def report(root: Path, template: str, slide: bool = False) -> str:
    """Fill one template with the made-up paper's records."""
    path = root / "papers/nvae/report.md.j2"
    path.write_text(template)
    return render.render(path, render.context(records.gather("nvae", root=root), slide))


# --- figures ---


def test_letters_are_large_and_colours_differ_for_the_colour_blind() -> None:
    sizes = [
        value
        for key, value in style.STYLE.items()
        if key.endswith("size") and not key.startswith(("lines", "errorbar"))
    ]
    assert min(sizes) >= 12
    # Luminance alone tells the first two apart, as a grey projector would have to.
    grey = [np.dot(matplotlib.colors.to_rgb(colour), [0.21, 0.72, 0.07]) for colour in style.COLOURS.values()]
    assert abs(grey[0] - grey[1]) > 0.05
    assert len(set(style.COLOURS.values())) == len(style.COLOURS)


def test_same_drawing_same_bytes_without_date_or_version(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        figure, (axes,) = style.new_figure(4, 3)
        axes.plot([1, 2, 3])
        axes.set_xlabel("x")
        axes.set_ylabel("y")
        style.save(figure, tmp_path / name)
    first = (tmp_path / "a.png").read_bytes()
    assert first == (tmp_path / "b.png").read_bytes()
    assert b"Matplotlib" not in first
    assert b"tIME" not in first


@pytest.mark.parametrize(("x", "y", "missing"), [("", "loss", "x"), ("epoch", "", "y")])
def test_axes_without_a_label_are_refused(tmp_path: Path, x: str, y: str, missing: str) -> None:
    figure, (axes,) = style.new_figure()
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    with pytest.raises(UserError, match=f"axes 0 has no {missing} label"):
        style.save(figure, tmp_path / "a.png")


def test_images_colour_bars_and_shared_axes_need_no_labels_of_their_own(tmp_path: Path) -> None:
    figure, (left, right) = style.new_figure(8, 3, columns=2, sharex=True, sharey=True)
    left.set_ylabel("y")
    right.set_xlabel("x")
    style.save(figure, tmp_path / "shared.png")
    figure, (axes,) = style.new_figure()
    style.draw_grid(axes, fabricated.samples(), 2, "grid", ["t=0", "t=1", "t=2"])
    figure.colorbar(axes.images[0], ax=axes)
    style.save(figure, tmp_path / "grid.png")
    assert (tmp_path / "shared.png").is_file()
    with pytest.raises(UserError, match="PNG"):
        style.save(figure, tmp_path / "grid.jpg")


@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor, lambda x: torch.as_tensor(x).to(torch.bfloat16)])
def test_grid_puts_each_image_in_its_place(kind: Any) -> None:
    picture = style.grid(kind(fabricated.samples()), columns=2, padding=2)
    assert picture.shape == (3 * 6 - 2, 2 * 8 - 2, 3)
    for i, brightness in enumerate(np.linspace(0, 1, 5)):
        top, left = i // 2 * 6, i % 2 * 8
        np.testing.assert_array_equal(picture[top : top + 4, left : left + 6], np.float32(brightness))
    assert (picture[4:6] == 1).all()  # the line between rows


@pytest.mark.parametrize("shape", [(4, 6), (2, 2, 4, 6), (0, 4, 6)])
def test_grid_refuses_other_shapes(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="images must be"):
        style.grid(np.zeros(shape), 2)


# --- tables ---


def test_markdown_aligns_numbers_to_the_right() -> None:
    assert tables.markdown(["a|b", "n", "x"], [["p|q", 12345, 1.25], ["r\n s", None, None]], ["", "", ".1f"]) == (
        "| a\\|b | n | x |\n| --- | ---: | ---: |\n| p\\|q | 12345 | 1.2 |\n| r s | - | - |"
    )
    with pytest.raises(ValueError, match="1 cells under 2"):
        tables.markdown(["a", "b"], [["x"]])


@pytest.mark.parametrize(
    ("value", "form", "text"),
    [(-0.0001, ".2f", "0.00"), (-0.5, ".1f", "-0.5"), (1e-9, ".4g", "1e-09"), (-0.0, ".4g", "0")],
)
def test_numbers_as_text(value: float, form: str, text: str) -> None:
    assert tables.number(value, form) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.26, "0.3 s"),
        (48.4, "48 s"),
        (59.6, "1 min 00 s"),
        (750, "12 min 30 s"),
        (7499, "2 h 05 min"),
        (3600, "1 h 00 min"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert tables.duration(seconds) == text


@given(
    st.lists(
        st.tuples(
            st.floats(allow_nan=False, allow_infinity=False) | st.none(),
            st.integers(),
            st.text(st.characters(categories=["L"]), min_size=1).filter(
                lambda x: x.lower() not in ("nan", "inf", "infinity")
            ),
        )
    )
)
def test_csv_gives_back_what_was_written(tmp_path_factory: pytest.TempPathFactory, rows: list[Any]) -> None:
    path = tmp_path_factory.mktemp("csv") / "t.csv"
    tables.write_csv(path, ["x", "n", "text, quoted"], rows)
    header, read = tables.read_csv(path)
    assert header == ["x", "n", "text, quoted"]
    assert read == [list(row) for row in rows]


def test_broken_csv_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("a,b\n1\n")
    with pytest.raises(UserError, match=r"a\.csv: line 2 has 1 cells under 2"):
        tables.read_csv(tmp_path / "a.csv")
    (tmp_path / "a.csv").write_text("")
    with pytest.raises(UserError, match="is empty"):
        tables.read_csv(tmp_path / "a.csv")


# --- templates ---


def test_report_says_what_was_measured(root: Path) -> None:
    text = render.report(records.gather("nvae", root=root))
    assert "# The nvae paper" in text
    assert "2 claims: **1 reproduced**, **1 not attempted**." in text
    assert "NLL 82.2 nats, [79.0, 85.3]," in text
    assert "sd 1.3, n = 3," in text
    assert "difference -2 [-2.25, -1.75], reproduced." in text
    assert "lower \\| better" in text
    assert "it takes eight days" in text
    assert "| NLL (nats) | 78.01 | not recorded | 82.17 | 1.26 | 3 | training seeds |" in text
    assert "| bits | 3.16 | not recorded | not measured | - | - | - |" in text
    assert "![The line falls.](figures/curve.png)\n\n*The line falls.*" in text
    assert "| b | - |" in text
    assert "0123456789ab" in text
    assert "30 min 03 s" in text
    assert "0, 1, 2" in text
    assert "Processor Z, 2 threads" in text
    assert "python 3.11.7, torch 2.13.0" in text


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("\n{{ valu('x') }}", r"report\.md\.j2:2: 'valu' is undefined"),
        ("{{ claim('C1-lower').verdikt }}", "has no attribute 'verdikt'"),
        ("\n\n{{ value('nll') }}", r"report\.md\.j2:3: no measurement of nll\[main\] at preset laptop"),
        ("{{ value('nll_nats', 'residual', preset='gpu') }}", "nothing is measured at preset gpu"),
        ("{{ difference('bytes', 'main', 'x') }}", r"no measurement of bytes\[x\]"),
        ("{{ claim('C9') }}", "no claim has the id 'C9'"),
        ("{{ claims_table(['C9']) }}", "no claim begins with C9"),
        ("{{ figure('gone.png', 'A caption.') }}", r"figures/gone\.png is missing"),
        ("{{ figure('curve.png', 'no sentence') }}", "the caption is one sentence"),
        ("{{ figure('curve.png', 'A caption.', preset='gpu') }}", "not among the recorded figures"),
        ("{{ table('gone.csv') }}", r"cannot read .*gone\.csv"),
        ("{{ paper_table([{'label': 'x'}]) }}", "a row needs label and metric"),
        ("{{ paper_table([{'label': 'x', 'metric': 'm', 'colour': 1}]) }}", "knows no colour"),
        ("{{ paper_table([{'label': 'x', 'metric': 'm', 'claim': 'C1-lower', 'key': 'by'}]) }}", "has no value 'by'"),
        ("{{ paper_table([{'label': 'x', 'metric': 'm', 'claim': 'C7'}]) }}", "no claim has the id 'C7'"),
        ("{{ benchmark_table() }}", r"benchmark\.json has no entry"),
        ("{{ 1 +", r"report\.md\.j2:1: "),
        ("{% include 'gone.j2' %}", r"gone\.j2 is missing"),
        ("{{ front_matter() }}", "'front_matter' is undefined"),
    ],
)
def test_a_mistake_in_a_template_is_one_line_with_its_place(root: Path, template: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        report(root, template)
    assert "\n" not in str(error.value)


def test_exact_numbers_have_no_interval(root: Path) -> None:
    assert report(root, "{{ value('bytes') }} {{ interval('bytes') }} {{ spread('bytes') }}") == (
        "1234 unknown (one seed) unknown (one seed)"
    )
    assert report(root, "{{ has('laptop', 'bytes') }} {{ has('gpu') }} {{ has('laptop', 'x') }}") == "True False False"


def test_ratio_is_paired(root: Path) -> None:
    text = report(root, "{{ ratio('nll_nats', 'residual', 'absolute', '.5f') }}")
    assert text.startswith(f"{np.mean([81 / 83, 82 / 84.1, 83.5 / 85.4]):.5f} [")


def test_slides_have_front_matter_and_short_tables(root: Path) -> None:
    text = render.slides(records.gather("nvae", root=root))
    assert text is not None
    assert text.startswith("---\n# Generated")
    assert "math: mathjax" in text
    assert "![h:440](figures/curve.png)\n\n<small>The line falls.</small>" in text
    assert "| claim | preset | verdict |" in text
    (root / "papers/nvae/slides.md.j2").write_text("# no front matter\n")
    with pytest.raises(UserError, match="slides begin with"):
        render.slides(records.gather("nvae", root=root))


def test_a_report_without_provenance_is_refused(root: Path) -> None:
    for path in (root / "papers/nvae/runs/laptop/provenance").iterdir():
        path.unlink()
    with pytest.raises(UserError, match="has no provenance; run `dvc repro papers/nvae`"):
        render.report(records.gather("nvae", root=root))


@pytest.mark.parametrize(
    ("paper", "text"),
    [
        (None, "-"),
        (3.16, "3.16"),
        ("lower", "lower"),
        (
            {"with": 3.16, "without": 3.19, "unit": "bits/dim", "unverified": True},
            "with 3.16, without 3.19 bits/dim (unverified)",
        ),
        ({"value": 78, "unit": "nats"}, "78 nats"),
    ],
)
def test_the_papers_values_as_text(paper: Any, text: str) -> None:
    assert blocks.paper_values(paper) == text


# --- headline, recording ---


def test_headline_carries_its_interval(root: Path) -> None:
    (entry,) = records.read_headline(root / "reports/nvae/headline.json")
    assert (entry.value, entry.n, entry.spread_over) == (pytest.approx(82.1667, abs=1e-3), 3, "training seeds")
    assert entry.interval == pytest.approx(measurements.summary(fabricated.metrics(), "nll_nats", "residual").interval)  # type: ignore[union-attr]
    with pytest.raises(UserError, match=r"headline 'x': no measurement of m\[main\]"):
        records.headline("x", {}, "m", preset="laptop", unit="")
    with pytest.raises(UserError, match="at least one entry"):
        records.write_headline(root / "x.json", [])
    (root / "reports/nvae/headline.json").write_text('[{"name": "x"}]')
    with pytest.raises(UserError, match=r"headline\.json: Object missing required field"):
        records.gather("nvae", root=root)


def test_headline_of_another_preset_is_refused(root: Path) -> None:
    with pytest.raises(UserError, match="is from preset laptop, the report is to be drawn from gpu"):
        records.gather("nvae", "gpu", root)


def test_a_single_seed_has_the_interval_of_its_test_images() -> None:
    numbers = {"m": {"main": {"seed0": 10.0}}, "m_standard_error": {"main": {"seed0": 0.5}}}
    found = measurements.summary(numbers, "m")
    assert found is not None
    assert (found.interval, found.spread_over) == ((10.0 - 0.98, 10.0 + 0.98), "test images")
    alone = measurements.summary({"m": {"main": {"seed0": 10.0}}}, "m")
    assert alone is not None
    assert (alone.interval, alone.spread) == (None, None)
    assert measurements.summary({}, "m") is None


def brought_home(root: Path, tmp: Path) -> Path:
    """Make the run at `gpu` elsewhere, record it there, and copy the recording here."""
    folder = fabricated.make(tmp, preset="gpu")
    path = record.record("nvae", "gpu", ["curve.png"], tmp)
    for made in [path, *path.with_suffix("").iterdir()]:
        target = root / made.relative_to(tmp)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(made.read_bytes())
    return folder


def test_a_recording_comes_home(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    brought_home(root, tmp_path_factory.mktemp("elsewhere"))
    kept = json.loads((root / "papers/nvae/recorded/gpu-processor-z-2-threads.json").read_text())
    assert kept["metrics"] == fabricated.metrics()
    assert [each["preset"] for each in kept["headline"]] == ["gpu"]
    text = render.report(records.gather("nvae", root=root))
    assert "| NLL (nats) | 78.01 | 82.17 (± 1.26, n = 3) | 82.17 | 1.26 | 3 | training seeds |" in text
    assert "| NLL (nats) | 78.01 | 82.17 | [79.04, 85.29] | 3 | training seeds | gpu |" in text
    assert "**Preset gpu**, recorded on another machine" in text
    assert text.index("**Preset laptop**") < text.index("**Preset gpu**")


RECORDED = """
{% if has_figure("curve.png", "gpu") %}
{{ figure("curve.png", "See it.", preset="gpu") }}
{% else %}
no figure of gpu
{% endif %}
"""


def test_a_recorded_figure_stands_beside_the_reports_own(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """It says of which run it is, and a report that asks for it can also be drawn before there is one."""
    assert "no figure of gpu" in report(root, RECORDED)
    (root / "papers/nvae/runs/gpu").mkdir()
    (root / "papers/nvae/runs/gpu/metrics.json").write_text(json.dumps(fabricated.metrics()))
    assert report(root, "{{ has('gpu') }}") == "True"
    assert "no figure of gpu" in report(root, RECORDED)  # numbers of this checkout, whose figures are drawn over
    (root / "papers/nvae/runs/gpu/metrics.json").unlink()

    brought_home(root, tmp_path_factory.mktemp("elsewhere"))
    text = report(root, RECORDED)
    assert "*See it. Preset gpu, recorded on Processor Z, 2 threads.*" in text
    link = text.split("](")[1].split(")")[0]
    assert link == "../../papers/nvae/recorded/gpu-processor-z-2-threads/curve.png"
    assert (root / "reports/nvae" / link).is_file()
    assert report(root, "{{ has_figure('gone.png', 'gpu') }}") == "False"

    (root / "papers/nvae/train.py").write_text("CHANGED = 1\n")
    assert "*See it. Preset gpu (stale), recorded on Processor Z, 2 threads.*" in report(root, RECORDED)
    (root / "reports/nvae" / link).unlink()
    with pytest.raises(UserError, match=r"curve\.png is missing"):  # the recording names it: lost, not left out
        report(root, RECORDED)


def test_a_stale_recording_is_marked_wherever_it_is_shown(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    brought_home(root, tmp_path_factory.mktemp("elsewhere"))
    (root / "papers/nvae/train.py").write_text("CHANGED = 1\n")
    text = render.report(records.gather("nvae", root=root))
    assert "gpu (stale)" in text
    assert "laptop (stale)" not in text
    assert "stale: the code of papers/nvae/train.py has changed" in text


def test_recording_refuses_what_proves_nothing(root: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read .*runs/gpu/metrics\.json"):
        record.record("nvae", "gpu", [], root)
    with pytest.raises(UserError, match=r"gone\.png is missing"):
        record.record("nvae", "laptop", ["gone.png"], root)
    (root / "reports/nvae/figures/large.png").write_bytes(b"0" * (record.LARGEST_FIGURE + 1))
    with pytest.raises(UserError, match="choose a smaller figure"):
        record.record("nvae", "laptop", ["large.png"], root)
    (root / "papers/nvae/recorded").mkdir()
    (root / "papers/nvae/recorded/laptop-other.json").write_text("{}")
    with pytest.raises(UserError, match=r"laptop-other\.json records preset laptop already"):
        record.record("nvae", "laptop", [], root)
    for path in (root / "papers/nvae/runs/laptop/provenance").iterdir():
        path.unlink()
    with pytest.raises(UserError, match="without provenance proves nothing"):
        record.record("nvae", "laptop", [], root)


# --- index and publishing ---


def test_index_has_nine_rows_in_the_seminars_order(root: Path) -> None:
    publish.publish(["nvae"], root=root)
    lines = [line for line in (root / "reports/README.md").read_text().splitlines() if line.startswith("| ")][2:]
    assert [next(name for name in PAPERS if name in line) for line in lines] == list(PAPERS)
    assert sum("not begun" in line for line in lines) == 8
    cells = "1 | 0 | 0 | 1 | NLL (nats) | 82.17 [79.04, 85.29] | 78.01 | laptop | 30 min 03 s"
    assert f"| [The nvae paper](nvae/README.md) | {cells} |" in lines
    readme = (root / "README.md").read_text()
    assert "(reports/nvae/README.md)" in readme
    assert readme.startswith("# Title\n")
    assert readme.endswith("End.\n")
    assert "old" not in readme


def test_publishing_twice_writes_nothing_and_the_order_of_papers_does_not_matter(tmp_path: Path) -> None:
    texts = []
    for order in (["nvae", "jem"], ["jem", "nvae"]):
        root = tmp_path / order[0]
        for name in order:
            fabricated.make(root, name)
        (root / "reports/jem/figures/gallery.png").write_bytes(b"x")
        for name in order:
            publish.publish([name], root=root)
        assert publish.publish(["jem"], root=root) == []
        assert publish.publish(order, root=root) == []
        assert publish.stale(order, root=root) == []
        texts.append([(root / file).read_text() for file in ("README.md", "reports/README.md")])
    assert texts[0] == texts[1]
    assert "[![The jem paper](reports/jem/figures/gallery.png)](reports/jem/README.md)" in texts[0][0]


def test_every_stale_file_is_told_and_none_is_written(root: Path) -> None:
    files = [
        "reports/nvae/claims.json",
        "reports/nvae/README.md",
        "reports/nvae/slides.md",
        "reports/README.md",
        "README.md",
    ]
    lines = publish.stale(["nvae"], root=root)
    assert [line.split()[0] for line in lines] == files
    assert "is missing" in lines[0]
    assert "is out of date" in lines[4]
    assert not (root / "reports/nvae/README.md").exists()
    publish.publish(["nvae"], root=root)
    for file in files:
        good = (root / file).read_text()
        (root / file).write_text(good.replace("nvae", "nvea", 1).replace("lower", "lowest", 1))
        assert [line.split()[0] for line in publish.stale(["nvae"], root=root)] == [file]
        (root / file).write_text(good)


def test_a_changed_number_makes_the_reports_stale(root: Path) -> None:
    publish.publish(["nvae"], root=root)
    (root / "papers/nvae/runs/laptop/metrics.json").write_text(json.dumps(fabricated.metrics(0.5)))
    told = [line.split()[0] for line in publish.stale(["nvae"], root=root)]
    assert {"reports/nvae/claims.json", "reports/nvae/README.md"} <= set(told)


def test_check_ends_with_the_agreed_status(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as before:
        publish.main(["--check"], root)
    assert before.value.code == 1
    publish.main([], root)
    assert "wrote reports/nvae/claims.json" in capsys.readouterr().out
    with pytest.raises(SystemExit) as after:
        publish.main(["nvae", "--check"], root)
    assert after.value.code == 0


def test_nothing_is_written_when_something_is_wrong(root: Path) -> None:
    (root / "README.md").write_text("# no markers\n")
    with pytest.raises(UserError, match=r"README\.md: needs one line <!-- papers:begin -->"):
        publish.publish(["nvae"], root=root)
    assert not (root / "reports/nvae/claims.json").exists()
    fabricated.make(root, "nvea")
    with pytest.raises(UserError, match="no paper is named 'nvea'"):
        publish.outputs(["nvea"], root=root)


@pytest.mark.parametrize(
    "text", ["<!-- b:end --><!-- b:begin -->", "<!-- b:begin -->", "<!-- b:begin --><!-- b:end --><!-- b:end -->"]
)
def test_markers_have_to_stand_once_and_in_order(text: str) -> None:
    with pytest.raises(UserError, match="needs one line"):
        index.replace_block(Path("README.md"), text, "b", "x")


def test_an_unreadable_claims_file_of_another_paper_is_named(root: Path) -> None:
    fabricated.make(root, "jem")
    (root / "reports/jem/claims.json").write_text('[{"id": "C1"}]')
    with pytest.raises(UserError, match=r"jem/claims\.json: not a list of checked claims"):
        publish.outputs(["nvae"], root=root)


def test_a_begun_paper_without_results_has_its_row(root: Path) -> None:
    folder = root / "papers/jem"
    folder.mkdir()
    (folder / "claims.yaml").write_text(fabricated.CLAIMS)
    (folder / "params.yaml").write_text("preset: laptop\n")
    assert "no result yet" in publish.outputs(["nvae"], root=root)[root / "reports/README.md"]
