"""The learning rate as a pure function of the step (Grathwohl et al., 2020, appendix)."""

from collections.abc import Sequence


def stepped_rate(
    step: int, peak: float, warmup_steps: int, decay_steps: Sequence[int] = (), factor: float = 0.3
) -> float:
    """Linear from 0 at step 0 to `peak` at `warmup_steps`, then times `factor` from each of `decay_steps` on.

    The paper's runs warm up over 1,000 steps, and their first step has rate 0.
    """
    warm = min(1.0, step / warmup_steps) if warmup_steps else 1.0
    return peak * warm * factor ** sum(step >= decay for decay in decay_steps)
