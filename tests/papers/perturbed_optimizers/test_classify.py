"""CIFAR-10 with a perturbed argmax: augmentation, losses, one training run, the stage's summary."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from papers.perturbed_optimizers import classify
from papers.perturbed_optimizers.images_training import (
    CROSS_ENTROPY,
    GUMBEL,
    SHIFT_PIXELS,
    SQUARED,
    Arm,
    Images,
    Trainer,
    augment,
    draw_augmentation,
    evaluate,
    grid,
    load_images,
    objective,
    scores,
)
from papers.perturbed_optimizers.model import VanillaCNN
from papers.perturbed_optimizers.perturbed import Perturbation
from papers.perturbed_optimizers.settings import load
from shared.data.batches import seed_step
from shared.data.samples import cut_cifar10
from shared.files import write_bytes
from shared.results import Metrics
from shared.training.checkpoint import StateFolder

CPU = torch.device("cpu")
FENCHEL_YOUNG = Arm("fenchel_young", Perturbation(epsilon=1.0, samples=1))
ALWAYS = -1.0  # seconds between saves: after every step


def pictures(count: int = 24, seed: int = 1) -> Tensor:
    """Random pixels uint8 (count, 32, 32, 3), none of them 0."""
    return torch.randint(1, 256, (count, 32, 32, 3), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)


def images(count: int = 24) -> Images:
    """Random images of random classes, in the form of CIFAR-10."""
    parts = [
        (pictures(n, seed), torch.randint(10, (n,), generator=torch.Generator().manual_seed(seed)))
        for seed, n in enumerate((count, 12, 20))
    ]
    return Images(*(tensor for part in parts for tensor in part))


def trainer(arm: Arm, seed: int = 0, epochs: int = 2, batch: int = 12) -> Trainer:
    return Trainer(images(), arm, seed, epochs, CPU, batch=batch)


# --- data ---


def test_parts_of_the_data_are_disjoint_and_in_order(tmp_path: Path) -> None:
    for name, content in cut_cifar10().items():
        write_bytes(tmp_path / "cifar10" / name, content)
    some = load_images(100, sample=True, folder=tmp_path)
    most = load_images(10_000, sample=True, folder=tmp_path)
    assert [len(x) for x in (some.train, some.validation, some.test)] == [100, 100, 120]
    assert len(most.train) == 300, "no more than what is not held out"
    assert torch.equal(most.train[:100], some.train)
    assert torch.equal(most.train_labels[:100], some.train_labels)
    assert torch.equal(most.validation, some.validation)
    everything = torch.cat([most.train, most.validation]).flatten(1)
    assert len(everything.unique(dim=0)) == 400
    raw = torch.frombuffer(bytearray(cut_cifar10()["data_batch_1.bin"]), dtype=torch.uint8)[: 3 * 1024 + 1]
    assert some.train_labels[0] == raw[0]
    assert torch.equal(some.train[0], raw[1:].view(3, 32, 32).permute(1, 2, 0))


# --- augmentation ---


def test_no_flip_and_no_shift_change_nothing() -> None:
    x = pictures(5)
    assert torch.equal(augment(x, torch.zeros(5, dtype=torch.bool), torch.zeros(5, 2, dtype=torch.long)), x)


def test_augmentation_is_mirroring_then_shifting_each_image_by_itself() -> None:
    x = pictures(40)
    mirrored, shift = draw_augmentation(40)
    assert 0 < mirrored.sum() < 40
    for given, flip, (down, right), result in zip(
        x, mirrored, shift.tolist(), augment(x, mirrored, shift), strict=True
    ):
        image = given.flip(1) if flip else given
        expected = torch.zeros_like(image)
        height, width = 32 - abs(down), 32 - abs(right)
        rows, columns = max(down, 0), max(right, 0)
        expected[rows : rows + height, columns : columns + width] = image[
            rows - down : rows - down + height, columns - right : columns - right + width
        ]
        assert torch.equal(result, expected)


def test_shifts_reach_a_tenth_of_the_side_and_no_further() -> None:
    _, shift = draw_augmentation(2_000)
    assert shift.unique().tolist() == list(range(-SHIFT_PIXELS, SHIFT_PIXELS + 1))
    assert round(0.1 * 32) == SHIFT_PIXELS


def test_batches_are_a_function_of_seed_and_step() -> None:
    one = trainer(CROSS_ENTROPY)

    def batch(seed: int, k: int) -> Tensor:
        seed_step(seed, k)
        one.seed = seed
        return one.augmented_batch(k)[0]

    first = batch(0, 1)
    assert torch.equal(first, batch(0, 1))
    assert not torch.equal(first, batch(0, 3)), "the same step of another epoch"
    assert not torch.equal(first, batch(1, 1))


def test_images_are_never_augmented_in_the_evaluation() -> None:
    data, model = images(), VanillaCNN()
    accuracy, nll_nats = evaluate(model, data.test, data.test_labels, batch=7)
    assert (accuracy, nll_nats) == evaluate(model, data.test, data.test_labels, batch=7)
    with torch.no_grad():
        theta = scores(model, data.test)
        exact = model(data.test.permute(0, 3, 1, 2).float() / 255)
    assert accuracy == pytest.approx((theta.argmax(1) == data.test_labels).float().mean().item())
    assert nll_nats == pytest.approx(F.cross_entropy(theta, data.test_labels).item(), rel=1e-3)
    torch.testing.assert_close(theta, exact, atol=2e-3, rtol=0.05)
    assert torch.equal(exact.argmax(1), theta.argmax(1))


# --- losses ---


def test_names_of_the_arms() -> None:
    arms = grid(load("laptop", image_epsilons=[0.01, 1.0, 100.0], image_samples=[1, 100]))
    assert [arm.name for arm in arms[:3]] == ["fy_eps0.01_m1", "fy_eps0.01_m100", "fy_eps1_m1"]
    assert len({arm.name for arm in arms}) == 6
    names = [arm.name for arm in (CROSS_ENTROPY, GUMBEL, SQUARED)]
    assert names == ["cross_entropy", "fy_gumbel_eps1_m100", "squared_eps1_m100"]


@pytest.mark.parametrize("arm", [CROSS_ENTROPY, FENCHEL_YOUNG, GUMBEL, SQUARED], ids=lambda arm: arm.name)
def test_steps_lower_the_loss_on_a_fixed_batch(arm: Arm) -> None:
    one = trainer(arm, epochs=10, batch=24)
    pixels, labels = one.images.train, one.images.train_labels
    one.augmented_batch = lambda k: (pixels, labels)  # type: ignore[method-assign]

    def loss() -> float:
        # With many samples, so that the noise of the estimate is far below the change.
        exact = Perturbation(1.0, 2_000, "gumbel" if arm == GUMBEL else "gaussian")
        seed_step(5, 0)
        with torch.no_grad():
            judged = arm if arm.perturbation is None else Arm(arm.loss, exact)
            return objective(scores(one.model, pixels), labels, judged).mean().item()

    before = loss()
    for k in range(2):
        seed_step(0, k)
        one.step(k)
    assert loss() < before


def test_fenchel_young_with_gumbel_noise_has_the_gradient_of_cross_entropy() -> None:
    torch.manual_seed(3)
    theta = torch.randn(6, 10, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, 3, 9, 3, 1, 5])
    (exact,) = torch.autograd.grad(objective(theta, labels, CROSS_ENTROPY).sum(), theta)
    samples = 20_000
    arm = Arm("fenchel_young", Perturbation(1.0, samples, "gumbel"))
    (estimate,) = torch.autograd.grad(objective(theta, labels, arm).sum(), theta)
    p = F.softmax(theta.detach(), 1)
    z = (estimate - exact) / (p * (1 - p) / samples).sqrt()
    assert z.abs().max() < 4.5
    assert 0.5 < z.square().mean() < 1.6, "the errors are as large as they should be, too"


def test_squared_loss_is_the_distance_of_the_mean_solution() -> None:
    theta = torch.zeros(2, 3, requires_grad=True)
    arm = Arm("squared", Perturbation(1.0, 5))
    seed_step(0, 0)
    loss = objective(theta, torch.tensor([0, 2]), arm)
    seed_step(0, 0)
    counts = F.one_hot(torch.randn(5, 2, 3).argmax(2), 3).float().mean(0)
    torch.testing.assert_close(loss, (counts - F.one_hot(torch.tensor([0, 2]), 3)).square().sum(1))
    loss.sum().backward()
    assert theta.grad is not None
    assert theta.grad.abs().max() > 0


# --- runs ---


def test_initial_weights_are_glorots() -> None:
    """Variance 2 / (fan in + fan out) and the bounds of a uniform law, biases zero (Glorot and Bengio 2010)."""
    first, dense = trainer(CROSS_ENTROPY).model.features[2], trainer(CROSS_ENTROPY).model.head[1]
    assert isinstance(first, torch.nn.Conv2d)
    assert isinstance(dense, torch.nn.Linear)
    for weight, fans in ((first.weight, 9 * (32 + 32)), (dense.weight, 2304 + 512)):
        assert weight.var().item() == pytest.approx(2 / fans, rel=0.05)
        assert weight.abs().max().item() == pytest.approx((6 / fans) ** 0.5, rel=0.01)
    assert not any(parameter.any() for name, parameter in trainer(SQUARED).model.named_parameters() if "bias" in name)


def test_arms_of_one_seed_share_weights_and_batches() -> None:
    one, other, apart = trainer(CROSS_ENTROPY), trainer(SQUARED), trainer(SQUARED, seed=1)
    pairs = list(zip(one.model.parameters(), other.model.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in pairs)
    assert not torch.equal(next(one.model.parameters()), next(apart.model.parameters()))
    seen: dict[str, list[Tensor]] = {}
    for each in (one, other):
        original = each.augmented_batch

        def keep(k: int, each: Trainer = each, original: Any = original) -> tuple[Tensor, Tensor]:
            batch: tuple[Tensor, Tensor] = original(k)
            seen.setdefault(each.arm.name, []).extend(batch)
            return batch

        each.augmented_batch = keep  # type: ignore[method-assign]
        for k in range(3):  # the second and third come after steps with different numbers of draws
            seed_step(0, k)
            each.step(k)
    assert all(torch.equal(a, b) for a, b in zip(*seen.values(), strict=True))


@pytest.mark.parametrize("arm", [CROSS_ENTROPY, FENCHEL_YOUNG, SQUARED], ids=lambda arm: arm.name)
def test_two_steps_a_stop_and_two_steps_resume_to_the_bits_of_four(arm: Arm, tmp_path: Path) -> None:
    whole = trainer(arm)
    assert whole.steps == 4
    with StateFolder("whole", "0", tmp_path) as folder:
        record = classify.train(whole, folder)

    stopped = trainer(arm)
    original = stopped.step

    def until_two(k: int) -> dict[str, Tensor]:
        if k == 2:
            raise KeyboardInterrupt
        return original(k)

    stopped.step = until_two  # type: ignore[method-assign]
    with StateFolder("parts", "0", tmp_path) as folder:
        with pytest.raises(KeyboardInterrupt):
            classify.train(stopped, folder, ALWAYS)
        resumed = trainer(arm)
        again = classify.train(resumed, folder, ALWAYS)
    assert again.interruptions == 1
    assert all(torch.equal(a, b) for a, b in zip(whole.model.parameters(), resumed.model.parameters(), strict=True))
    assert classify.curve(whole, record) == classify.curve(resumed, again)
    assert [row["epoch"] for row in classify.curve(whole, record)] == [0.5, 1.0, 1.5, 2.0]


def test_a_diverged_run_is_measured_all_the_same(tmp_path: Path) -> None:
    one = trainer(CROSS_ENTROPY)
    with torch.no_grad():
        next(one.model.parameters()).fill_(float("nan"))
    with StateFolder("diverged", "0", tmp_path) as folder:
        record = classify.train(one, folder)
    numbers = classify.measure(one)
    assert classify.curve(one, record) == []
    assert set(numbers) == {"test_accuracy", "validation_accuracy", "train_accuracy"}, "no likelihood of no numbers"


def test_the_best_arm_is_chosen_on_validation_images() -> None:
    candidates = grid(load("laptop", image_epsilons=[0.1, 1.0], image_samples=[1, 10]))
    keys = [(arm, seed) for seed in range(2) for arm in [CROSS_ENTROPY, *candidates]]

    def numbers(arm: Arm, seed: int) -> dict[str, float]:
        # On test images eps 0.1 is best, on validation images eps 1 with M = 10.
        p = arm.perturbation
        if p is None:
            return {"test_accuracy": 0.9, "validation_accuracy": 0.9, "train_accuracy": 0.9, "test_nll_nats": 0.5}
        on_validation = p.epsilon / 4 + p.samples / 100 + seed / 10
        return {"test_accuracy": 0.8 - on_validation / 2, "validation_accuracy": on_validation, "train_accuracy": 0.5}

    metrics: Metrics = classify.summary(keys, [{"numbers": numbers(*key)} for key in keys], candidates)
    assert metrics["best_epsilon"] == {"fy_best": {"exact": 1.0}}
    assert metrics["best_samples"] == {"fy_best": {"exact": 10}}
    assert metrics["test_accuracy"]["fy_best"] == metrics["test_accuracy"]["fy_eps1_m10"]
    assert metrics["test_nll_nats"] == {"cross_entropy": {"seed0": 0.5, "seed1": 0.5}}


def test_every_arm_learns_to_tell_two_colours() -> None:
    pixels = pictures(32) // 4
    labels = torch.arange(32) % 2
    pixels[labels == 1, :, :, 0] += 150
    data = Images(pixels, labels, pixels, labels, pixels, labels)
    for arm in (CROSS_ENTROPY, FENCHEL_YOUNG):
        one = Trainer(data, arm, 0, 8, CPU, batch=16)
        for k in range(one.steps):
            seed_step(0, k)
            one.step(k)
        assert evaluate(one.model, pixels, labels)[0] == 1.0
        assert one.curve.points[-1] == (one.steps, 1.0)
