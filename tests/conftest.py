"""Set before anything else is imported: one thread a process, no window, torchvision importable, no network."""

import os

# The tests run on several processes; more threads would only fight for the cores. Child processes inherit this.
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[_name] = "1"
os.environ["MPLBACKEND"] = "Agg"
os.environ["DVC_NO_ANALYTICS"] = "1"

import socket
from typing import Any

import hypothesis
import pytest
import torch

import shared.torchvision_operators  # noqa: F401 - before torchmetrics, which imports torchvision

torch.set_num_threads(1)

# The same examples on every machine and every day: a failure is a change of the code. No deadline: machines differ.
hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None, max_examples=50)
hypothesis.settings.load_profile("repeatable")

_LOCAL = ("127.0.0.1", "::1", "localhost")


def pytest_report_header(config: pytest.Config) -> str | None:
    """Say what a run leaves out, so that nothing is left out in silence."""
    expression = config.getoption("markexpr")
    return f"only tests marked: {expression} (others: make test-data, make test-gpu)" if expression else None


@pytest.fixture(autouse=True)
def _same_random_numbers() -> None:
    """Every test starts from the same state of torch's generator, whatever ran before it in its process."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test that reaches for another machine fails; servers on this machine are allowed."""
    connect = socket.socket.connect

    def local_only(self: socket.socket, address: Any) -> None:
        if self.family != socket.AF_UNIX and address[0] not in _LOCAL:
            raise AssertionError(f"a test tried to reach {address}: tests run without a network")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", local_only)
