"""Mistakes that a person can mend are told in one line, without a traceback."""

import sys
from collections.abc import Callable


class UserError(Exception):
    """A mistake of the user or of the machine; the text is one line: what, where, why, and what to do."""


def run(main: Callable[[], None]) -> None:
    """Run a program's `main`; a `UserError` becomes one line on standard error and exit status 1."""
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("stopped by the keyboard; finished steps are kept, run the same command again to go on", file=sys.stderr)
        sys.exit(130)
