"""Schedules as pure functions of the step, so that a resumed run needs no schedule state."""

import math


def cosine_with_warmup(step: int, steps: int, peak: float, final: float, warmup_steps: int) -> float:
    """Learning rate at `step` (from 0): linear from 0 to `peak` over `warmup_steps`, then half a cosine to `final`."""
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(steps - warmup_steps, 1)
    return final + (peak - final) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
