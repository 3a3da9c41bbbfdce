"""Timing several works fairly, and the record of a comparison: what the benchmarks have in common."""

import time
from collections.abc import Callable

#: A turn of one work, long against the clock's ticks and short against changes of the machine.
TURN_S = 0.02


def seconds_of(work: Callable[[], object], calls: int = 1) -> float:
    """Wall-clock seconds of a call, mean of several."""
    began = time.perf_counter()
    for _ in range(calls):
        work()
    return (time.perf_counter() - began) / calls


def in_turns(works: list[Callable[[], object]], rounds: int) -> list[list[float]]:
    """Wall-clock seconds of a call of each, for each round: each is called until its turn is over."""
    calls = []
    for work in works:
        work()  # warms up
        calls.append(max(1, round(TURN_S / seconds_of(work))))
    table = [[seconds_of(work, count) for work, count in zip(works, calls, strict=True)] for _ in range(rounds)]
    return [list(column) for column in zip(*table, strict=True)]


def entry(name: str, ours: float, baseline: float, unit: str, ratio: float, conditions: str) -> dict[str, object]:
    """One record of `benchmark.json`."""
    return {
        "name": name,
        "ours": float(f"{ours:.5g}"),
        "baseline": float(f"{baseline:.5g}"),
        "unit": unit,
        "ratio": float(f"{ratio:.4g}"),
        "conditions": conditions,
    }
