"""Kept memory: the passes of a network, made again and again, fetch no new pages."""

import sys

from shared.paths import ROOT
from tests import checkout

FAULTS = """
import resource, torch
from shared.training.memory import keep_freed_memory
{call}
network = torch.nn.Sequential(torch.nn.Conv2d(3, 32, 3), torch.nn.ReLU(), torch.nn.Conv2d(32, 32, 3), torch.nn.ReLU())
x = torch.randn(32, 3, 32, 32)
def work():
    for _ in range(20):
        network(x).sum().backward()
work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(call: str) -> int:
    """Pages fetched by twenty passes after as many, in a process of its own."""
    return int(checkout.run(ROOT, sys.executable, "-c", FAULTS.format(call=call)).stdout)


def test_freed_memory_is_used_again() -> None:
    kept, returned = faults("keep_freed_memory()"), faults("pass")
    # A process fetches a few pages for other reasons, more of them where others want memory too.
    assert 5 * kept < returned if sys.platform == "linux" else kept <= returned
