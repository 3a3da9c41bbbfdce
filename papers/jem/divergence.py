"""Going on after a divergence, without a person: the run returns to its last trusted state (section 5 and appendix of
Grathwohl et al., 2020, where runs are restarted by hand).

It works inside one step of `shared.training.loop.fit` and not around it, since the loop saves by the clock and a return
must depend on steps alone:

    recovery = Recovery({"model": model, "optimizer": optimizer, "buffer": buffer}, seed=seed)
    record = fit(recovery.watching(step), steps=steps, seed=seed, folder=folder, guard=recovery.guard,
                 state={"model": model, "optimizer": optimizer, "buffer": buffer, "recovery": recovery})

`step(k)` draws its chains with `chain_generator(recovery.sampler_seed, k)` and may scale its learning rate by
`recovery.rate_factor`. The loop's k is never turned back: steps that were lost are lost, the run costs what was
planned, and the batches and random numbers that follow are new ones. Copies, seed and events are part of the state that
the loop saves, so an interrupted run goes on to the same bits. It is for one process.
"""

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from shared.training.loop import Stateful

Step = Callable[[int], Mapping[str, Tensor | float]]
#: Distance between the sampler's seeds of one run, so that runs whose seeds are small never share one.
SEED_STRIDE = 10_007


@dataclass(frozen=True)
class Event:
    """One return: what happened, and which seeds the sampler had before and after."""

    step: int  # at which it went wrong
    back_to: int  # the first of the steps that were undone
    cause: str
    seed_before: int
    seed_after: int


class Recovery:
    """Keeps copies of the parts of a run and puts them back when a step went wrong; itself part of the run's state.

    A copy is taken every `every` steps and trusted once `every` further steps went well: just before a divergence the
    loss may look healthy while the weights no longer are. So a return undoes between `every` and 2 `every` steps,
    except near the beginning. It restores every bit of the parts and gives the sampler a new seed.

    Args:
        parts: what a step changes: model, optimiser, buffer, average of the weights. They are copied on their device.
        seed: the run's, and the sampler's first.
        name: the scalar of a step's row that is watched.
        bound: largest |value| of it. The authors' 1e8 is never reached in time; losses of a healthy run are below 10.
        every: steps between copies.
        most: returns after which the run is given up.
        factor: `rate_factor` is multiplied by it at each return; 1 leaves the learning rate alone.

    Raises:
        ValueError: a bound, an interval or a factor that is not positive.
    """

    def __init__(
        self,
        parts: Mapping[str, Stateful],
        *,
        seed: int,
        name: str = "loss",
        bound: float = 1e3,
        every: int = 200,
        most: int = 10,
        factor: float = 1.0,
    ) -> None:
        if not (bound > 0 and every > 0 and factor > 0):
            raise ValueError(f"bound, every and factor are positive, got {bound}, {every} and {factor}")
        self.parts, self.seed, self.name = parts, seed, name
        self.bound, self.every, self.most, self.factor = bound, every, most, factor
        self.events: list[Event] = []
        self._copies: list[dict[str, Any]] = []  # at most two: the trusted one, then the newest
        self._row: dict[str, float] = {}  # of the last step that went well

    @property
    def sampler_seed(self) -> int:
        """Seed of the chains; a new one after each return."""
        return self.seed + SEED_STRIDE * len(self.events)

    @property
    def rate_factor(self) -> float:
        """What the learning rate is to be multiplied by."""
        return self.factor ** len(self.events)

    @property
    def guard(self) -> tuple[str, float]:
        """The loop's guard: it stops the run once this class has given it up."""
        return f"absolute_{self.name}", self.bound

    def watching(self, step: Step) -> Step:
        """The step, watched: where it goes wrong its effects are undone, and the loop never sees it.

        The row gains `absolute_<name>` and `undone` (0 or 1, so the record counts it). Of an undone step it repeats
        the last good row, so that means stay finite. A run that goes wrong before its first good step or after `most`
        returns gets the bad row, at which the loop raises `Divergence` with the record so far.

        Every step is looked at, which waits for the device once a step: little beside twenty passes of a network.
        """

        def watched(k: int) -> Mapping[str, Tensor | float]:
            if not self._copies:
                self._copies.append(self._copy(k))
            row = {name: float(value) for name, value in step(k).items()}
            row[f"absolute_{self.name}"] = abs(row[self.name])
            cause = self._cause(row)
            if cause is None:
                self._row = row
                if (k + 1) % self.every == 0:
                    self._copies = [*self._copies[-1:], self._copy(k + 1)]
                return row | {"undone": 0.0}
            if not self._row or len(self.events) >= self.most:
                return row | {"undone": 0.0}
            self._go_back(k, cause)
            return self._row | {"undone": 1.0}

        return watched

    def _cause(self, row: Mapping[str, float]) -> str | None:
        """What is wrong with a row, in words; None if nothing is."""
        for name, value in row.items():
            if not math.isfinite(value):
                return f"{name} is not finite"
        value = row[self.name]
        return f"{self.name} = {value:.4g} (bound {self.bound:g})" if abs(value) > self.bound else None

    def _copy(self, step: int) -> dict[str, Any]:
        return {"step": step, "parts": {name: copy.deepcopy(part.state_dict()) for name, part in self.parts.items()}}

    def _go_back(self, k: int, cause: str) -> None:
        trusted = self._copies[0]
        for name, part in self.parts.items():
            # An optimiser would keep the copy itself and change it at its next step.
            part.load_state_dict(copy.deepcopy(trusted["parts"][name]))
        before = self.sampler_seed
        self.events.append(Event(k, trusted["step"], cause, before, before + SEED_STRIDE))
        self._copies = [trusted]

    def state_dict(self) -> dict[str, Any]:
        """What is saved: plain values and tensors."""
        return {"events": [vars(event) for event in self.events], "copies": self._copies, "row": self._row}

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        """What was saved."""
        self.events = [Event(**event) for event in state["events"]]
        self._copies = list(state["copies"])
        self._row = dict(state["row"])
