"""The expressions, the verdicts, and the messages for malformed claims."""

import json
import operator
import random
from pathlib import Path

import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from shared import claims, comparisons, expressions
from shared.errors import UserError
from shared.provenance import code_sha256

Seeds = dict[str, float]


def seeds(*values: float) -> Seeds:
    return {f"seed{i}": value for i, value in enumerate(values)}


def judge(text: str, **arms: Seeds) -> comparisons.Judgement:
    """Judge an expression about the metric `m`."""
    return comparisons.judge(expressions.parse(text), {"m": arms})


# --- the grammar ---

LEAVES = st.sampled_from(["m[a]", "m[b]", 'm["c d"]', "m[4]"]) | st.floats(0.01, 100).map(lambda x: f"{x:.3f}")
SIDES = st.recursive(
    LEAVES,
    lambda side: (
        st.tuples(side, st.sampled_from("+-*/"), side).map(lambda parts: f"({' '.join(parts)})")
        | side.map(lambda text: f"-{text}")
        | side.map(lambda text: f"abs({text})")
    ),
    max_leaves=8,
)
POINT = {"a": 1.5, "b": -0.25, "c d": 3.0, "4": 7.0}


@given(SIDES, st.sampled_from(["<", "<=", ">", ">="]))
def test_a_side_has_pythons_value(side: str, relation: str) -> None:
    (comparison,) = expressions.parse(f"{side} {relation} m[a]")
    names = {expressions.Operand("m", arm): value for arm, value in POINT.items()}
    scope = {"m": {**POINT, 4: POINT["4"]}, "a": "a", "b": "b", "abs": abs}
    try:
        expected = eval(side, {"__builtins__": {}}, scope)  # noqa: S307 - the second opinion, on texts made above
    except ZeroDivisionError:
        with pytest.raises(ZeroDivisionError):
            expressions.value(comparison.left, names)
        return
    assert expressions.value(comparison.left, names) == expected
    assert comparison.relation == relation


@given(SIDES, st.sampled_from(["<", "<=", ">", ">="]), st.floats(-5, 5).map(lambda x: round(x, 2)))
def test_exact_numbers_are_decided_as_python_does(side: str, relation: str, bound: float) -> None:
    exact = {"m": {arm: {"exact": value} for arm, value in POINT.items()}}
    text = f"{side} {relation} {bound} + 0 * m[a]"
    scope = {"m": {**POINT, 4: POINT["4"]}, "a": "a", "b": "b", "abs": abs}
    try:
        left, right = (eval(part, {"__builtins__": {}}, scope) for part in text.split(f" {relation} "))  # noqa: S307
    except ZeroDivisionError:
        assert comparisons.judge(expressions.parse(text), exact).verdict == "inconclusive"
        return
    found = comparisons.judge(expressions.parse(text), exact)
    if left != right and abs(left - right) < 1e-9 * max(abs(left), abs(right)):
        return  # a - b < 0 and a < b round differently there
    holds = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}[relation]
    assert found.verdict == ("reproduced" if holds(left, right) else "not reproduced")
    assert found.n == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("m[a] <", "not an expression"),
        ("", "not an expression"),
        ("m[a]", "is not a comparison"),
        ("m[a] == m[b]", "only < <= > >= compare"),
        ("m[a] < m[b] or m[a] > 3", "is not a comparison"),
        ("not m[a] < 3", "is not a comparison"),
        ("m[a] < n", "n is not allowed"),
        ("m.a < 3", "is not allowed"),
        ("m[a] ** 2 < 3", "is not allowed"),
        ("max(m[a], 3) < 4", r"the only function is abs\(x\)"),
        ("abs(m[a], 3) < 4", r"the only function is abs\(x\)"),
        ("__import__('os').system('x') < m[a]", "the only function is"),
        ("m[a[0]] < 3", "is not allowed"),
        ("m[a] < True", "is not allowed"),
        ("m[a] < 'x'", "is not allowed"),
        ("m[a] < 1e999", "too large"),
        ("1 < 2 and m[a] < 3", r"no metric\[arm\] in 1 < 2"),
        ("0 < 1 < m[a]", r"no metric\[arm\] in 0 < 1"),
    ],
)
def test_malformed_expressions_are_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        expressions.parse(text)


# --- verdicts ---


def test_an_interval_on_the_claimed_side_reproduces() -> None:
    found = judge("m[a] < m[b]", a=seeds(1.0, 2.0, 3.0), b=seeds(2.1, 3.0, 3.9))
    assert (found.verdict, found.n, found.spread_over) == ("reproduced", 3, "training seeds")
    ends = scipy.stats.ttest_rel([1.0, 2.0, 3.0], [2.1, 3.0, 3.9]).confidence_interval(0.95)
    assert found.interval == pytest.approx((ends.low, ends.high))
    assert found.ours == pytest.approx({"m[a]": 2.0, "m[b]": 3.0})


@given(st.lists(st.tuples(st.floats(-9, 9), st.floats(-9, 9)), min_size=3, max_size=6))
def test_verdict_is_the_place_of_scipys_interval(pairs: list[tuple[float, float]]) -> None:
    first, second = zip(*pairs)
    if max(map(abs, (x - y for x, y in pairs))) < 1e-3 or len({x - y for x, y in pairs}) == 1:
        return
    low, high = scipy.stats.ttest_rel(first, second).confidence_interval(0.95)
    if min(abs(low), abs(high)) < 1e-9:
        return
    arms = {"a": seeds(*first), "b": seeds(*second)}
    expected = "reproduced" if high < 0 else "not reproduced" if low > 0 else "inconclusive"
    mirrored = {"reproduced": "not reproduced", "not reproduced": "reproduced", "inconclusive": "inconclusive"}
    assert judge("m[a] < m[b]", **arms).verdict == expected
    assert judge("m[b] > m[a]", **arms).verdict == expected
    assert judge("m[b] < m[a]", **arms).verdict == mirrored[expected]


def test_an_interval_on_the_other_side_and_one_that_holds_zero() -> None:
    assert judge("m[a] > m[b]", a=seeds(1.0, 2.0, 3.0), b=seeds(2.1, 3.0, 3.9)).verdict == "not reproduced"
    assert judge("m[a] < m[b]", a=seeds(1.0, 2.0, 3.0), b=seeds(2.0, 1.0, 5.0)).verdict == "inconclusive"


def test_two_seeds_are_too_few() -> None:
    found = judge("m[a] < m[b]", a=seeds(1.0, 2.0), b=seeds(5.0, 6.0))
    assert (found.verdict, found.interval, found.n) == ("inconclusive", None, 2)
    assert "too few seeds: 2" in found.why


def test_a_diverged_seed_is_left_out_and_told() -> None:
    found = judge("m[a] < m[b]", a=seeds(1.0, 2.0, 3.0, 50.0), b=seeds(2.1, 3.0, 3.9))
    assert (found.verdict, found.n) == ("reproduced", 3)
    assert found.ours["m[a]"] == pytest.approx(2.0)
    assert "seed3 left out" in found.why


def test_no_common_seed() -> None:
    assert judge("m[a] < m[b]", a={"seed0": 1.0}, b={"seed1": 2.0}).verdict == "inconclusive"


@pytest.mark.parametrize(("text", "verdict"), [("m[a] < m[b]", "inconclusive"), ("m[a] <= m[b]", "reproduced")])
def test_equal_differences_are_a_point(text: str, verdict: str) -> None:
    found = judge(text, a=seeds(1.0, 2.0, 4.0), b=seeds(1.0, 2.0, 4.0))
    assert (found.verdict, found.interval) == (verdict, (0.0, 0.0))
    assert judge("m[a] < m[b]", a=seeds(1.0, 2.0, 4.0), b=seeds(2.0, 3.0, 5.0)).interval == (-1.0, -1.0)


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ((0.01, -0.01, 0.0), "reproduced"),  # interval about +-0.025
        ((0.1, 0.3, 0.2), "inconclusive"),  # about [-0.05, 0.45]
        ((1.0, 1.01, 0.99), "not reproduced"),
        ((-1.0, -1.01, -0.99), "not reproduced"),
    ],
)
def test_tolerance(values: tuple[float, ...], verdict: str) -> None:
    assert judge("abs(m[a]) <= 0.1", a=seeds(*values)).verdict == verdict
    assert judge("0.1 >= abs(m[a])", a=seeds(*values)).verdict == verdict
    opposite = {"reproduced": "not reproduced", "not reproduced": "reproduced", "inconclusive": "inconclusive"}
    assert judge("abs(m[a]) > 0.1", a=seeds(*values)).verdict == opposite[verdict]


def test_a_tolerance_may_be_an_exact_measurement_but_seeds_are_paired() -> None:
    arms = {"a": seeds(0.01, -0.01, 0.0), "t": {"exact": 0.1}, "b": seeds(0.5, 0.6, 0.7)}
    assert "the claim asks |x| <= 0.1" in judge("abs(m[a]) <= m[t]", **arms).why
    paired = judge("abs(m[a]) <= m[b]", **arms)
    assert paired.why.startswith("abs(m[a]) - m[b] =")
    assert paired.verdict == "reproduced"


def test_exact_numbers_need_no_seeds() -> None:
    found = judge("m[a] / m[b] <= 0.7", a={"exact": 7}, b={"exact": 10})
    assert (found.verdict, found.n, found.spread_over) == ("reproduced", 1, "nothing: exact")
    assert judge("abs(m[a] - 7) < 1e-12", a={"exact": 7}).verdict == "reproduced"
    assert judge("m[a] > m[b]", a={"exact": 7}, b={"exact": 10}).verdict == "not reproduced"


def test_an_exact_number_stands_beside_every_seed() -> None:
    found = judge("m[a] < m[b]", a=seeds(1.0, 2.0, 3.0), b={"exact": 10.0})
    assert (found.verdict, found.n) == ("reproduced", 3)


def with_errors(error_a: float, error_b: float | None) -> comparisons.Metrics:
    errors = {"a": {"seed0": error_a}, **({} if error_b is None else {"b": {"seed0": error_b}})}
    return {"m": {"a": {"seed0": 80.0}, "b": {"seed0": 81.0}}, "m_standard_error": errors}


def test_one_seed_with_standard_errors_speaks_for_the_test_images() -> None:
    found = comparisons.judge(expressions.parse("2 * m[a] < 2 * m[b]"), with_errors(0.3, 0.4))
    assert (found.verdict, found.n, found.spread_over) == ("reproduced", 1, "test images")
    assert found.interval == pytest.approx((-2 - 1.96 * 2 * 0.5, -2 + 1.96 * 2 * 0.5))
    assert comparisons.judge(expressions.parse("m[a] < m[b]"), with_errors(0.6, 0.8)).verdict == "inconclusive"
    # The same operand twice errs once.
    doubled = comparisons.judge(expressions.parse("m[a] + m[a] < 2 * m[b]"), with_errors(0.3, 0.4))
    assert doubled.interval == pytest.approx(found.interval)


def test_one_seed_without_every_standard_error_is_too_few() -> None:
    assert comparisons.judge(expressions.parse("m[a] < m[b]"), with_errors(0.3, None)).verdict == "inconclusive"


def test_chains_and_conjunctions() -> None:
    a, b, c = seeds(1.0, 2.0, 3.0), seeds(2.1, 3.0, 3.9), seeds(9.0, 9.5, 10.1)
    assert judge("m[a] < m[b] < m[c]", a=a, b=b, c=c).verdict == "reproduced"
    wrong = judge("m[a] < m[c] and m[c] < m[b]", a=a, b=b, c=c)
    assert wrong.verdict == "not reproduced"
    assert wrong.interval is not None
    assert wrong.interval.low > 0
    unsure = judge("m[a] < m[c] and m[a] < m[d]", a=a, c=c, d=seeds(0.0, 2.0, 9.0))
    assert unsure.verdict == "inconclusive"
    assert list(unsure.ours) == ["m[a]", "m[c]", "m[d]"]
    both = judge("m[a] < m[d] and m[c] < m[a]", a=a, c=c, d=seeds(0.0, 2.0, 9.0))
    assert both.verdict == "not reproduced"  # one comparison that fails outweighs one that is open


def test_division_by_zero_is_inconclusive() -> None:
    found = judge("m[a] / m[b] < 1", a=seeds(1.0, 1.0, 1.0), b=seeds(1.0, 0.0, 2.0))
    assert (found.verdict, "not finite" in found.why) == ("inconclusive", True)


@pytest.mark.parametrize(("values", "message"), [({"exact": 1.0, "seed0": 2.0}, "mixes"), ({}, "holds no number")])
def test_bad_metrics_are_refused(values: Seeds, message: str) -> None:
    with pytest.raises(UserError, match=message):
        judge("m[a] < 3", a=values)


def test_more_seeds_of_a_true_difference_end_in_reproduced() -> None:
    """The verdicts are calibrated: without a difference at most about 2.5 % of the claims are called reproduced."""
    draw = random.Random(0)
    said = [
        judge(
            "m[a] < m[b]",
            a=seeds(*(draw.gauss(0, 1) for _ in range(4))),
            b=seeds(*(draw.gauss(0, 1) for _ in range(4))),
        )
        for _ in range(2000)
    ]
    share = sum(found.verdict == "reproduced" for found in said) / len(said)
    assert 0.012 < share < 0.04


# --- files ---


def paper(root: Path, yaml: str, **runs: object) -> Path:
    """Write a paper's claims and the metrics of its runs."""
    folder = root / "papers" / "nvae"
    for name, text in {"claims.yaml": yaml, "params.yaml": "preset: laptop\n", "train.py": "import shared.b\n"}.items():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    (root / "shared").mkdir(exist_ok=True)
    (root / "shared" / "b.py").write_text("X = 1\n")
    for preset, metrics in runs.items():
        path = folder / "runs" / preset / "metrics.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(metrics))
    return folder


CLAIM = """
- id: C1-lower
  statement: Lower.
  source: table 1
  paper: {with: 1e-3, unverified: true}
  compare: m[a] < m[b]
  unit: nats
"""
METRICS = {"m": {"a": seeds(1.0, 2.0, 3.0), "b": seeds(2.1, 3.0, 3.9)}}


def test_a_row_has_the_agreed_keys(tmp_path: Path) -> None:
    paper(tmp_path, CLAIM, laptop=METRICS)
    (row,) = claims.check("nvae", root=tmp_path)
    assert list(row) == [
        "id", "statement", "source", "paper", "compare", "ours",
        "interval", "n", "spread_over", "preset", "verdict", "why",
    ]  # fmt: skip
    assert row["paper"] == {"with": 0.001, "unverified": True, "unit": "nats"}  # YAML 1.2: 1e-3 is a number
    assert (row["verdict"], row["preset"], row["n"]) == ("reproduced", "laptop", 3)
    assert json.loads(json.dumps(row)) == row


def test_one_row_a_preset_with_data_and_smoke_counts_for_nothing(tmp_path: Path) -> None:
    yaml = CLAIM + "  presets: [smoke, laptop, gpu_cifar10, paper]\n"
    paper(tmp_path, yaml, smoke=METRICS, laptop=METRICS, gpu_cifar10={"m": {"a": seeds(1.0)}})
    rows = claims.check("nvae", root=tmp_path)
    assert [(row["preset"], row["verdict"]) for row in rows] == [
        ("laptop", "reproduced"),
        ("gpu_cifar10", "not attempted"),
    ]
    assert rows[1]["why"] == "no measurement of m[b] at preset gpu_cifar10"
    assert [row["preset"] for row in claims.check("nvae", "smoke", tmp_path)] == ["smoke", "laptop", "gpu_cifar10"]


def test_no_data_is_not_attempted_with_a_reason(tmp_path: Path) -> None:
    yaml = CLAIM + "- {id: C2, statement: s, source: t, not_attempted: needs eight weeks}\n"
    paper(tmp_path, yaml)
    rows = claims.check("nvae", root=tmp_path)
    assert [row["verdict"] for row in rows] == ["not attempted"] * 2
    assert [row["why"] for row in rows] == ["no run at preset laptop or gpu is recorded", "needs eight weeks"]
    assert [row["n"] for row in rows] == [0, 0]


def test_note_is_told(tmp_path: Path) -> None:
    paper(tmp_path, CLAIM + "  note: a diagnosis\n", laptop=METRICS)
    assert claims.check("nvae", root=tmp_path)[0]["why"].endswith("; a diagnosis")


def recording(root: Path, folder: Path, preset: str = "gpu") -> dict[str, object]:
    digest = code_sha256(folder / "train.py", root)
    return {"preset": preset, "device": "X", "code_sha256": digest, "metrics": METRICS, "provenance": []}


def test_a_recording_counts_and_becomes_stale(tmp_path: Path) -> None:
    folder = paper(tmp_path, CLAIM)
    (folder / "recorded").mkdir()
    (folder / "recorded" / "gpu-x.json").write_text(json.dumps(recording(tmp_path, folder)))
    (row,) = claims.check("nvae", root=tmp_path)
    assert (row["preset"], row["verdict"], "stale" in row["why"]) == ("gpu", "reproduced", False)
    (tmp_path / "shared" / "b.py").write_text("X = 2\n")
    (row,) = claims.check("nvae", root=tmp_path)
    assert (row["verdict"], "; stale: the code of papers/nvae/train.py has changed" in row["why"]) == (
        "reproduced",
        True,
    )
    (folder / "recorded" / "gpu-y.json").write_text(json.dumps(recording(tmp_path, folder)))
    with pytest.raises(UserError, match="both record preset gpu"):
        claims.check("nvae", root=tmp_path)


def test_a_run_of_this_checkout_goes_before_a_recording(tmp_path: Path) -> None:
    folder = paper(tmp_path, CLAIM, gpu={"m": {"a": seeds(9.0, 9.0, 9.0), "b": seeds(1.0, 1.0, 1.0)}})
    (folder / "recorded").mkdir()
    (folder / "recorded" / "gpu-x.json").write_text(json.dumps(recording(tmp_path, folder)))
    assert [row["verdict"] for row in claims.check("nvae", root=tmp_path)] == ["not reproduced"]


@pytest.mark.parametrize(
    ("yaml", "message"),
    [
        (CLAIM + "  colour: red\n", "C1-lower: unknown key `colour`"),
        (CLAIM + CLAIM, "C1-lower: this id is used twice"),
        (CLAIM + CLAIM.replace("C1-lower", "C2").replace("< m", "= m"), "C2: compare: not an expression"),
        ("- {id: C1, statement: s, compare: 'm[a] < 1'}", "C1: .*missing required field `source`"),
        ("- {id: C1, statement: s, source: t}", "C1: give `compare`, or `not_attempted`"),
        ("- {id: C1, statement: 3, source: t, compare: 'm[a] < 1'}", "C1: Expected `str`, got `int`"),
        (CLAIM + "  presets: [desktop]\n", "C1-lower: Expected `str` matching regex"),
        (CLAIM + "  presets: []\n", "C1-lower: presets: name at least one"),
        ("id: C1\n", "expected a list of claims, got dict"),
        ("- C1\n", "claim 1: expected a record"),
        ("- {id: C1, id: C2}\n", "is not YAML"),
    ],
)
def test_malformed_claims_are_named_in_one_line(tmp_path: Path, yaml: str, message: str) -> None:
    paper(tmp_path, yaml)
    with pytest.raises(UserError, match=rf"claims\.yaml:? .*{message}|claims\.yaml: {message}") as error:
        claims.of_paper("nvae", tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("metrics", "message"),
    [({"m": {"a": 3}}, "Expected `object`, got `int`"), ({"m": {"a": {"seed0": "x"}}}, "Expected `float`, got `str`")],
)
def test_malformed_metrics_are_named(tmp_path: Path, metrics: object, message: str) -> None:
    paper(tmp_path, CLAIM, laptop=metrics)
    with pytest.raises(UserError, match=rf"metrics\.json: .*{message}"):
        claims.check("nvae", root=tmp_path)


def test_every_claim_counts_once_and_at_the_reports_preset_first() -> None:
    def row(id: str, preset: str, verdict: str) -> claims.Row:
        return {"id": id, "preset": preset, "verdict": verdict}

    rows = [
        row("C1", "laptop", "inconclusive"),
        row("C1", "gpu", "reproduced"),
        row("C2", "laptop", "not attempted"),
        row("C2", "gpu", "not reproduced"),
        row("C2", "paper", "reproduced"),
        row("C3", "laptop", "not attempted"),
    ]
    assert claims.count(rows, "laptop") == {"reproduced": 1, "not reproduced": 0, "inconclusive": 1, "not attempted": 1}
    assert claims.count(rows, "gpu") == {"reproduced": 1, "not reproduced": 1, "inconclusive": 0, "not attempted": 1}
