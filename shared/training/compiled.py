"""TorchInductor where it works and pays: a compiled function fuses what lies between convolutions."""

import sys
import warnings
from functools import cache
from typing import Any

import torch
from torch import Tensor

from shared.training.distributed import world_size

#: Compiling a network takes from half a minute to two and a half; a run of fewer steps ends sooner without.
WORTH_STEPS = 2_000


@cache
def can_compile(device: torch.device) -> bool:
    """Whether functions can be compiled for `device`; says in one line why not.

    On the CPU it takes a C++ compiler and Python's headers, which is found out by compiling something small. Not used
    on GPUs, where it has not been measured, nor with several processes, whose batch norms talk to each other.
    """
    if device.type != "cpu" or world_size() > 1:
        return False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the compiler's own
            torch.compile(_probe, fullgraph=True)(torch.ones(8))
    except Exception as error:  # noqa: BLE001 - whatever goes wrong in a compiler, the run goes on without
        reason = " ".join((str(error).strip() or type(error).__name__).splitlines()[:2])
        print(f"not compiled, which is slower: {reason} (it takes g++ and python3-dev)", file=sys.stderr)
        return False
    return True


def _probe(x: Tensor) -> Tensor:
    return x.sin() + 1


def compiled(function: Any) -> Any:
    """`function` compiled as one graph for the shapes it is called with; an operation that cannot be raises."""
    return torch.compile(function, fullgraph=True, dynamic=False)
