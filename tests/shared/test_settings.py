"""A bad params.yaml is one line with file, key and reason."""

from pathlib import Path
from typing import Annotated, Literal

import msgspec
import pytest

from shared import settings
from shared.errors import UserError
from shared.settings import Settings


class Example(Settings):
    steps: Annotated[int, msgspec.Meta(ge=1)]
    rate: float
    kind: Literal["a", "b"] = "a"
    sizes: tuple[int, int] = (1, 2)


GOOD = "preset: laptop\nlaptop:\n  steps: 3\n  rate: 1e-3\n  sizes: [4, 5]\nsmoke:\n  steps: 1\n  rate: 1\n"


@pytest.fixture
def params(tmp_path: Path) -> Path:
    path = tmp_path / "params.yaml"
    path.write_text(GOOD)
    return path


def test_a_block_becomes_a_typed_object(params: Path) -> None:
    loaded = settings.load(params, "laptop", Example)
    assert loaded == Example(steps=3, rate=1e-3, kind="a", sizes=(4, 5))
    assert isinstance(settings.load(params, "smoke", Example).rate, float)


def test_overrides_replace_single_keys(params: Path) -> None:
    assert settings.load(params, "laptop", Example, {"steps": 9, "kind": "b"}).steps == 9
    with pytest.raises(UserError, match="unknown key `stepz`"):
        settings.load(params, "laptop", Example, {"stepz": 9})


def test_settings_cannot_change(params: Path) -> None:
    loaded = settings.load(params, "laptop", Example)
    with pytest.raises(AttributeError):
        loaded.steps = 4  # type: ignore[misc]


@pytest.mark.parametrize(
    ("block", "reason"),
    [
        ("steps: 3\n  rate: 1\n  stpes: 4", "unknown key `stpes`"),
        ("steps: 3", "missing required field `rate`"),
        ("steps: 0\n  rate: 1", "`int` >= 1 - at `steps`"),
        ("steps: three\n  rate: 1", "Expected `int`, got `str` - at `steps`"),
        ("steps: 3.5\n  rate: 1", "at `steps`"),
        ("steps: 3\n  rate: 1\n  kind: c", "Invalid enum value 'c' - at `kind`"),
        ("steps: 3\n  rate: 1\n  sizes: [1]", "at `sizes`"),
    ],
)
def test_a_bad_value_names_file_preset_key_and_reason(params: Path, block: str, reason: str) -> None:
    params.write_text(f"laptop:\n  {block}\n")
    with pytest.raises(UserError) as caught:
        settings.load(params, "laptop", Example)
    text = str(caught.value)
    assert text.startswith(f"{params}: laptop: ")
    assert reason in text
    assert "\n" not in text


def test_an_unknown_preset_lists_the_known_ones(params: Path) -> None:
    with pytest.raises(UserError, match="no preset named 'big'; there are: laptop, smoke"):
        settings.load(params, "big", Example)
    with pytest.raises(UserError, match="no preset named 'preset'"):
        settings.load(params, "preset", Example)


@pytest.mark.parametrize("text", ["", "- 1\n- 2\n", "just words\n"])
def test_a_document_without_blocks(params: Path, text: str) -> None:
    params.write_text(text)
    with pytest.raises(UserError, match="no preset named 'laptop'; there are: none"):
        settings.load(params, "laptop", Example)


@pytest.mark.parametrize("text", ["a: [1, 2\n", "a: 1\na: 2\n", "a: !!python/object/apply:os.getcwd []\n"])
def test_a_file_that_is_not_yaml(params: Path, text: str) -> None:
    params.write_text(text)
    with pytest.raises(UserError, match="is not YAML") as caught:
        settings.read_yaml(params)
    assert "\n" not in str(caught.value)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read .*No such file"):
        settings.read_yaml(tmp_path / "none.yaml")
