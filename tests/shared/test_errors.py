"""A mistake of the user ends in one line and status 1; a mistake of ours keeps its traceback."""

import pytest

from shared import errors
from shared.errors import UserError


def test_user_error_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> None:
        raise UserError("the disk is full")

    with pytest.raises(SystemExit) as caught:
        errors.run(main)
    assert caught.value.code == 1
    output = capsys.readouterr()
    assert output.err == "error: the disk is full\n"
    assert output.out == ""


def test_keyboard(capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> None:
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as caught:
        errors.run(main)
    assert caught.value.code == 130
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_other_errors_pass_through() -> None:
    def main() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        errors.run(main)


def test_success_returns() -> None:
    done: list[int] = []
    errors.run(lambda: done.append(1))
    assert done == [1]
