"""torchvision can be used beside the installed torch, whichever builds the two are."""

import subprocess
import sys

import pytest
import torch

from shared import torchvision_operators


def test_grid_of_images() -> None:
    from torchvision.utils import make_grid

    images = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 3, 2, 2)
    grid = make_grid(images, nrow=2, padding=0)
    assert grid.shape == (3, 4, 4)
    assert grid[0].tolist() == [[0, 0, 1, 1]] * 2 + [[2, 2, 3, 3]] * 2


def test_second_call_declares_nothing() -> None:
    """Declaring an operator twice is an error in torch, so a second call has to leave it alone."""
    before = torchvision_operators._declarations
    torchvision_operators.ensure()
    assert torchvision_operators._declarations is before
    assert torchvision_operators._operators_exist()


def test_an_operator_works_or_is_refused() -> None:
    """A declared operator must never return something that looks like a result."""
    boxes, scores = torch.tensor([[0.0, 0.0, 1.0, 1.0]] * 2), torch.tensor([0.5, 0.9])
    if torchvision_operators.declared_here():
        with pytest.raises((NotImplementedError, RuntimeError)):
            torch.ops.torchvision.nms(boxes, scores, 0.5)
    else:
        assert torch.ops.torchvision.nms(boxes, scores, 0.5).tolist() == [1]


def test_needed_exactly_where_something_was_declared() -> None:
    """When torchvision's import works without this module everywhere, the module can go."""
    plain = subprocess.run([sys.executable, "-c", "import torchvision"], capture_output=True, check=False)
    assert (plain.returncode != 0) == torchvision_operators.declared_here(), plain.stderr.decode()
