"""Turns are timed by the call, and a record keeps what it is given."""

import time

from benchmarks.timing import entry, in_turns


def test_turns_give_the_seconds_of_one_call() -> None:
    slow, fast = in_turns([lambda: time.sleep(0.004), lambda: time.sleep(0.001)], 3)
    assert len(slow) == len(fast) == 3
    assert min(slow) >= 0.004
    assert 0.001 <= min(fast) < min(slow)


def test_an_entry_keeps_five_digits() -> None:
    row = entry("name", 123456.7, 1 / 3, "ms", 2 / 3, "conditions")
    assert (row["ours"], row["baseline"], row["ratio"]) == (123460.0, 0.33333, 0.6667)
