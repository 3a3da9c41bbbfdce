"""How far a trained network can be led astray, with and without refinement (Grathwohl et al., 2020, section 5.4).

Radii are in the units of the box [0, 1]. Every function takes test images (N, C, H, W) in [-1, 1] with labels (N,),
and returns `Found`; robust accuracies are shares of all images, misclassified ones included, in percent. The attacker
knows the network and, unless said otherwise, follows its gradient.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from papers.jem.attacks import (
    Attack,
    Norm,
    refine_with_graph,
    refined_logits,
    robust_accuracy,
    smallest_fooling_eps,
)
from papers.jem.distal import distal_adversaries
from papers.jem.energy import Network
from papers.jem.evaluation import Found, Rows, grey_levels, logits_of, together
from papers.jem.sampling import nearest_distance
from papers.jem.sgld import Langevin, run_chains, still

#: The largest is where next to nothing holds.
RADII: dict[Norm, tuple[float, ...]] = {"linf": (0.01, 0.02, 0.05, 0.1, 0.2), "l2": (0.25, 0.5, 1.0, 2.0)}
#: Radii at which refinement, and the attacker, are varied.
STUDIED: dict[Norm, tuple[float, ...]] = {"linf": (0.05, 0.1), "l2": (0.5, 1.0)}
#: The paper's code averages the logits of as many chains, and adds noise to each copy.
CHAINS, INPUT_NOISE = 5, 0.03

#: Confidence at which noise counts as a distal adversary.
SURE = {"distal": 0.9, "distal_surer": 0.999}

Gradient = Literal["straight_through", "full"]


def named(eps: float) -> str:
    """A radius in the name of a metric, where a dot would not do: 0.05 is `eps0_05`."""
    return f"eps{eps:g}".replace(".", "_")


def curve(network: nn.Module, x: Tensor, labels: Tensor, norm: Norm, steps: int, seed: int = 0) -> Found:
    """Robust accuracy of JEM-0, the network as it is, against the radius in one norm.

    Args:
        steps: of projected gradient descent, from a random start in the ball.
        seed: of the starts.

    Returns:
        Numbers `robust_<norm>_eps<radius>_percent`, and the table `robust_<norm>`: `eps` from 0 on, `jem0_percent`.
    """
    radii = RADII[norm]
    with still(network):
        smallest = smallest_fooling_eps(network, x, labels, radii, Attack(norm, steps), seed=seed)
    shares = [100 * share for share in robust_accuracy(smallest, (0.0, *radii))]
    rows: Rows = [{"eps": eps, "jem0_percent": share} for eps, share in zip((0.0, *radii), shares, strict=True)]
    numbers = {f"robust_{norm}_{named(row['eps'])}_percent": row["jem0_percent"] for row in rows[1:]}
    return Found(numbers, {f"robust_{norm}": rows})


def curves(network: nn.Module, x: Tensor, labels: Tensor, steps: int, seed: int = 0) -> Found:
    """`curve` in both norms."""
    return together(*(curve(network, x, labels, norm, steps, seed) for norm in RADII))


def jem(network: nn.Module, steps: int, *, noisy: bool = False, gradient: Gradient = "straight_through") -> Network:
    """JEM-k: k Langevin steps with step size 1 and noise 0.01, then the logits (B, K).

    Args:
        network: in evaluation mode, its parameters constant: call this inside `still`.
        steps: k.
        noisy: the mean of 5 chains, each from a noisy copy, as the paper's code has it; else one chain from the image.
        gradient: what the attacker sees, see `refined_logits`.
    """
    move = refine_with_graph if gradient == "full" else run_chains
    refine = partial(move, network, langevin=Langevin(steps=steps)) if steps else None
    chains, noise = (CHAINS, INPUT_NOISE) if noisy else (1, 0.0)
    return partial(refined_logits, network, refine=refine, chains=chains, input_noise=noise, gradient=gradient)


def defences(network: nn.Module) -> dict[str, Network]:
    """Name -> JEM-k."""
    return {
        "jem0": jem(network, 0),
        "jem1": jem(network, 1),
        "jem1_full": jem(network, 1, gradient="full"),
        "jem1_noisy": jem(network, 1, noisy=True),
        "jem10": jem(network, 10),
        "jem10_full": jem(network, 10, gradient="full"),
        "jem10_noisy": jem(network, 10, noisy=True),
    }


def refinement(
    network: nn.Module,
    x: Tensor,
    labels: Tensor,
    steps: int,
    seed: int = 0,
    names: Sequence[str] = (),
    norm: Norm = "linf",
) -> Found:
    """Robust accuracy of JEM-k for k = 0, 1 and 10, and against other attackers.

    Refinement hides gradients, so two attacks are run and an image has to stand both: one follows the gradient of JEM-k
    (`own`), one that of JEM-0. Even a plain classifier seems robust with one step of refinement to an attacker who
    follows its own gradient only: a large step leaves the softmax saturated.

    `<JEM-k>_full` is attacked through the refinement steps themselves, and `<JEM-k>_worst` is what stands all of these
    attacks. `<JEM-k>_noisy` is the mean of 5 noisy copies, and so is each gradient that the attacker follows: with new
    noise at every step that is an expectation over the noise (Athalye et al., 2018). All see the same images.

    Args:
        names: which of the `defences`; all by default.
        norm: of the attacks.

    Returns:
        Numbers `<defence>_clean_percent` (with L-inf only), `<defence>_<norm>_eps<radius>_percent` and, of the first
        attack alone, `<defence>_own_<norm>_eps<radius>_percent`; and the table `refinement_<norm>`: `eps` from 0 on,
        and a column `<defence>_percent` each.
    """
    attack, radii = Attack(norm, steps), STUDIED[norm]
    found, smallest = Found(), {}
    with still(network):
        for name, classify in defences(network).items():
            if names and name not in names:
                continue
            smallest[name] = own = smallest_fooling_eps(classify, x, labels, radii, attack, seed=seed)
            if name != "jem0":
                other = smallest_fooling_eps(classify, x, labels, radii, attack, seed=seed, surrogate=network)
                smallest[name] = torch.minimum(own, other)
                for eps, share in zip(radii, robust_accuracy(own, radii), strict=True):
                    found.numbers[f"{name}_own_{norm}_{named(eps)}_percent"] = 100 * share
    for name in ("jem1", "jem10"):
        if {name, f"{name}_full"} <= smallest.keys():
            smallest[f"{name}_worst"] = torch.minimum(smallest[name], smallest[f"{name}_full"])
    rows = [{"eps": eps} for eps in (0.0, *radii)]
    for name, values in smallest.items():
        for row, share in zip(rows, robust_accuracy(values, (0.0, *radii)), strict=True):
            row[f"{name}_percent"] = 100 * share
            if row["eps"]:
                found.numbers[f"{name}_{norm}_{named(row['eps'])}_percent"] = 100 * share
            elif norm == "linf":
                found.numbers[f"{name}_clean_percent"] = 100 * share
    found.tables[f"refinement_{norm}"] = rows
    return found


def masking_checks(
    network: nn.Module, x: Tensor, labels: Tensor, steps: int, surrogate: nn.Module | None = None, seed: int = 0
) -> Found:
    """Is the gradient of JEM-0 honest? Attacks in L-inf that should not do better than PGD, or not much.

    `more_steps` has five times the steps, `margin` another loss, `noise` tries 50 random points of the ball and needs
    no gradient, `transfer` follows the gradient of the surrogate. Where noise or transfer fool more images than PGD
    does, or a ball of radius 0.5, in which every image can be made grey, leaves some right, gradients are masked
    (Athalye et al., 2018).

    Returns:
        Numbers `check_<attack>_linf_eps<radius>_percent`.
    """
    pgd = Attack("linf", steps)
    attacks = {
        "pgd": pgd,
        "more_steps": replace(pgd, steps=5 * steps),
        "margin": replace(pgd, loss="margin"),
        "noise": Attack("linf", 0, restarts=50),
    }
    numbers: dict[str, float] = {}

    def measure(name: str, attack: Attack, radii: tuple[float, ...], other: nn.Module | None = None) -> None:
        smallest = smallest_fooling_eps(network, x, labels, radii, attack, seed=seed, surrogate=other)
        for eps, share in zip(radii, robust_accuracy(smallest, radii), strict=True):
            numbers[f"check_{name}_linf_{named(eps)}_percent"] = 100 * share

    with still(network):
        for name, attack in attacks.items():
            # One radius only: the results of smaller ones would be further starts.
            measure(name, attack, STUDIED["linf"][-1:])
        measure("grey", pgd, (0.5,))
        if surrogate is not None:
            with still(surrogate):
                measure("transfer", pgd, STUDIED["linf"], surrogate)
    return Found(numbers)


def distal(
    network: nn.Module,
    images_per_class: int,
    shape: tuple[int, ...],
    *,
    classes: int = 10,
    steps: int = 200,
    train: Tensor | None = None,
    judge: nn.Module | None = None,
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> Found:
    """Noise that is moved until the network is sure of a class, 90 % as in the paper and 99.9 %: what is it then?

    Args:
        images_per_class: noise images, uniform in the box, that are moved towards each class.
        shape: of an image, (C, H, W).
        steps: at most as many, of Euclidean length 0.5 on the scale [-1, 1].
        train: images uint8 (N, C, H, W), or in [-1, 1], to which the distance is measured.
        judge: another network; does it see the same class?

    Returns:
        For <level> in `distal` and `distal_surer` numbers `<level>_reached_percent`, `<level>_steps_mean` (those in
        vain count in full), and with their arguments `<level>_nearest_train` and `<level>_judged_percent`; the picture
        `<level>`, class by class, and the table `<level>`: `target`, `confidence_percent`, `steps` of each image.
    """
    generator = torch.Generator(device).manual_seed(seed)
    targets = torch.arange(classes, device=device).repeat_interleave(images_per_class)
    start = 2 * torch.rand(len(targets), *shape, generator=generator, device=device) - 1
    found = Found()
    for level, bound in SURE.items():
        with still(network):
            reached = distal_adversaries(network, start, targets, confidence=bound, steps=steps)
        found.numbers[f"{level}_reached_percent"] = 100 * float((reached.confidence > bound).double().mean())
        found.numbers[f"{level}_steps_mean"] = float(reached.steps.double().mean())
        if train is not None:
            found.numbers[f"{level}_nearest_train"] = float(nearest_distance(reached.images, train).double().mean())
        if judge is not None:
            seen = logits_of(judge, reached.images).argmax(1)
            found.numbers[f"{level}_judged_percent"] = 100 * float((seen == targets).double().mean())
        columns = (targets.tolist(), (100 * reached.confidence).tolist(), reached.steps.tolist())
        rows: Rows = [{"target": t, "confidence_percent": c, "steps": n} for t, c, n in zip(*columns, strict=True)]
        found.tables[level], found.pictures[level] = rows, grey_levels(reached.images)
    return found
