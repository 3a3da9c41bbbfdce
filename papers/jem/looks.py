"""What is looked at along a run, as part of its state."""

from typing import Any


class Looks:
    """Rows of numbers, saved and restored with the run."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def state_dict(self) -> dict[str, Any]:
        """What is saved."""
        return {"rows": self.rows}

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """What was saved."""
        self.rows = state["rows"]
