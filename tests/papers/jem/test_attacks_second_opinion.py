"""Projected gradient descent against the Adversarial Robustness Toolbox, image by image."""

import numpy as np
import pytest
import torch
from art.attacks.evasion import ProjectedGradientDescentPyTorch
from art.estimators.classification import PyTorchClassifier

from papers.jem.attacks import Attack, margin, pgd
from papers.jem.model import SmallConvNet

EPS, STEPS, SHARE = 0.06, 8, 0.2


def sure_network() -> SmallConvNet:
    """Weights whose logits vary with the image; those of a new network hardly do."""
    torch.manual_seed(3)
    network = SmallConvNet()
    with torch.no_grad():
        for p in network.parameters():
            p.mul_(2.5 if p.dim() > 1 else 1.0)
    return network.eval()


def theirs(network: SmallConvNet, x: torch.Tensor, labels: torch.Tensor, norm: float) -> torch.Tensor:
    """The toolbox sees images in [-1, 1], so its radius and steps are twice those of the box [0, 1]."""
    classifier = PyTorchClassifier(network, torch.nn.CrossEntropyLoss(), (1, 28, 28), 10, clip_values=(-1.0, 1.0))
    radius = 2 * EPS * (1 if norm == np.inf else 20)
    attack = ProjectedGradientDescentPyTorch(
        classifier, norm=norm, eps=radius, eps_step=SHARE * radius, max_iter=STEPS, num_random_init=0, verbose=False
    )
    return torch.from_numpy(attack.generate(x.numpy(), labels.numpy()))


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_same_adversaries(norm: str) -> None:
    """Ours keeps the best visited image, theirs the last: where the margin rose to the end they are one."""
    network = sure_network()
    wall = 1.0 if norm == "linf" else 0.5  # in L2 the box is cut at other places of a step
    x, labels = wall * (torch.rand(24, 1, 28, 28) * 2 - 1), torch.arange(24) % 10
    eps = EPS * (1 if norm == "linf" else 20)
    ours = pgd(network, x, labels, eps, Attack(norm, STEPS, relative_step=SHARE, random_start=False))
    found = theirs(network, x, labels, np.inf if norm == "linf" else 2)
    same = (ours - found).flatten(1).abs().mean(1) < 1e-3 * EPS
    assert same.float().mean() > 0.7
    with torch.no_grad():
        before, own, other = (margin(network(images), labels) for images in (x, ours, found))
    assert (own >= other - 1e-4).all()
    assert (other - before).mean() > 0.1  # the comparison is of attacks that do something
