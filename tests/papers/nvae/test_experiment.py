"""One training run of NVAE: data, steps, resuming, divergence."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from torch import Tensor

from papers.nvae import experiment, losses
from papers.nvae.experiment import Images, Trainer, load_images, observe, run_digest, train
from shared.data.batches import seed_step
from shared.errors import UserError
from shared.files import read_json
from shared.paths import paper
from shared.results import save_weights
from shared.training.checkpoint import StateFolder
from shared.training.loop import Divergence
from tests.papers.nvae import golden, tiny

ALWAYS = -1.0  # seconds between saves: after every step


# --- data ---


def test_split_keeps_the_last_training_images_for_validation() -> None:
    data = tiny.images(tiny.settings())
    assert [len(x) for x in (data.train, data.validation, data.test)] == [384, 128, 256]
    assert data.train.dtype == torch.uint8
    assert (data.side, data.channels) == (32, 1)


def test_pooled_images() -> None:
    small, large = tiny.images(tiny.settings(image_side=16)), tiny.images(tiny.settings())
    assert small.train.shape == (384, 1, 16, 16)
    assert small.side == 16
    padded = losses.pad_centred(large.train.float() / 255, 32)
    torch.testing.assert_close(small.train, padded.view(384, 1, 16, 2, 16, 2).mean((3, 5)))


def test_the_sample_is_refused_without_being_asked_for(tmp_path: Path) -> None:
    from shared.paths import ROOT

    with pytest.raises(UserError):
        load_images(tiny.settings(), folder=ROOT / "tests" / "data")


def test_observing_mnist() -> None:
    pixels = tiny.images(tiny.settings()).train[:6]
    torch.manual_seed(0)
    x, padded = observe(pixels, tiny.settings(), 32)
    assert x.shape == (6, 1, 28, 28)
    assert set(x.unique().tolist()) == {0, 1}
    assert set(padded.unique().tolist()) == {-1, 1}
    assert torch.equal(padded[:, :, 2:30, 2:30], x * 2 - 1), "the encoder sees the very image that is scored"
    assert (padded[:, :, :2] == -1).all()
    again, _ = observe(pixels, tiny.settings(), 32)
    assert not torch.equal(x, again), "binarised afresh at every look"


@pytest.mark.parametrize("bits", [8, 5])
def test_observing_rgb(bits: int) -> None:
    pixels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    x, padded = observe(pixels, tiny.settings(data="cifar10", image_bits=bits), 16)
    levels = 2**bits
    expected = torch.arange(256) // (256 // levels) / (levels - 1) * 2 - 1
    torch.testing.assert_close(x[0, 0].flatten(), expected)
    assert torch.equal(x, padded)
    assert len(x.unique()) == levels


# --- steps ---


@pytest.mark.parametrize("name", tiny.OPTIONS)
def test_one_step_lowers_the_loss_on_a_fixed_batch(name: str) -> None:
    run = tiny.trainer(**tiny.OPTIONS[name])

    def loss() -> float:
        seed_step(0, 0)  # the same noise
        with torch.no_grad():
            return run.terms(0).loss.item()

    run.model.train()
    before = loss()
    seed_step(0, 0)
    row = run.step(0)
    assert math.isfinite(before)
    assert all(math.isfinite(float(value)) for value in row.values())
    assert loss() < before


def test_golden_losses() -> None:
    expected = read_json(golden.FILE)
    got = golden.losses()
    assert len(got) == 10
    assert got == pytest.approx(expected["losses"], rel=expected["relative_tolerance"])
    assert expected["losses"][-1] < expected["losses"][0]


def test_the_row_of_a_step() -> None:
    run = tiny.trainer()
    seed_step(0, 0)
    row = {name: float(value) for name, value in run.step(0).items()}
    total = row["reconstruction_nats"] + sum(row[f"kl_nats_{i}"] for i in range(3))
    assert row["bound_nats"] == pytest.approx(total, rel=1e-6)
    assert row["gradient_norm"] > 0


def test_learning_rate_follows_the_schedule() -> None:
    run = tiny.trainer(steps=100, learning_rate_warmup=0.05, learning_rate_final=1e-3)
    rates = []
    for k in (0, 4, 5, 99):
        seed_step(0, k)
        run.step(k)
        rates.append(run.optimizer.param_groups[0]["lr"])
    assert rates[:3] == pytest.approx([0.002, 0.01, 0.01])
    assert 1e-3 < rates[3] < 1.01e-3


def test_optimiser_is_the_papers() -> None:
    group = tiny.trainer().optimizer.param_groups[0]
    assert isinstance(tiny.trainer().optimizer, torch.optim.Adamax)
    assert (group["betas"], group["eps"], group["weight_decay"]) == ((0.9, 0.999), 1e-3, 3e-4)
    assert sum(p.numel() for p in group["params"]) == sum(p.numel() for p in tiny.trainer().model.parameters())


@pytest.mark.parametrize("initial", [None, 1.0])
def test_penalty_enters_with_its_weight(initial: float | None) -> None:
    with_penalty, without = tiny.trainer(spectral_weight_initial=initial), tiny.trainer(spectral_weight=0.0)
    values = []
    for run in (with_penalty, without):
        seed_step(0, 0)
        values.append(run.terms(0).loss.item())
    weight = losses.regularisation_weight(1e-4, 1e-2, initial)
    sigma = sum(
        torch.linalg.matrix_norm(experiment.convolutions(with_penalty.model)[i].effective_weight().flatten(1), 2).item()
        if hasattr(conv, "effective_weight")
        else torch.linalg.matrix_norm(conv.weight.flatten(1), 2).item()
        for i, conv in enumerate(experiment.convolutions(with_penalty.model))
    )
    norms = len(losses.batch_norms(with_penalty.model))  # every gain is still 1
    assert values[0] - values[1] == pytest.approx(weight * (sigma + norms), rel=0.02)


def test_average_of_the_weights_is_what_is_evaluated() -> None:
    run, plain = tiny.trainer(averaging=0.9), tiny.trainer()
    assert plain.evaluated() is plain.model
    for k in range(3):
        seed_step(0, k)
        run.step(k)
    evaluated = run.evaluated()
    assert evaluated is not run.model
    assert not evaluated.training
    assert not torch.equal(evaluated.start, run.model.start)
    assert set(run.state()) == {"model", "optimizer", "spectral", "average"}


# --- resuming ---


class Stop(Exception):
    """Stands for a kill inside a step."""


def stop_at(run: Trainer, k: int) -> Trainer:
    step = run.step

    def stopping(j: int) -> dict[str, Tensor]:
        if j == k:
            raise Stop
        return step(j)

    run.step = stopping  # type: ignore[method-assign]
    return run


@pytest.mark.parametrize("name", ["base", "flows", "averaging", "bfloat16", "rgb"])
def test_two_and_two_steps_resumed_are_four(name: str, tmp_path: Path) -> None:
    changes = {**tiny.OPTIONS[name], "steps": 4}
    whole = tiny.trainer(**changes)
    with StateFolder("whole", "key", tmp_path) as folder:
        expected = train(whole, folder, "whole")
    with StateFolder("parts", "key", tmp_path) as folder, pytest.raises(Stop):
        train(stop_at(tiny.trainer(**changes), 2), folder, "first", save_seconds=ALWAYS)
    resumed = tiny.trainer(**changes)
    with StateFolder("parts", "key", tmp_path) as folder:
        record = train(resumed, folder, "second")
    assert record.interruptions == 1
    assert record.rows == expected.rows
    for ours, theirs in ((resumed.model, whole.model), (resumed.spectral, whole.spectral)):
        other = theirs.state_dict()
        assert all(torch.equal(value, other[name]) for name, value in ours.state_dict().items())
    save_weights(tmp_path / "a.pt", whole.evaluated())
    save_weights(tmp_path / "b.pt", resumed.evaluated())
    assert (tmp_path / "a.pt").read_bytes() == (tmp_path / "b.pt").read_bytes()


def test_anything_that_decides_a_run_names_its_state() -> None:
    """A resumed run never picks up a state of other code, settings, data, seed or length."""
    chosen, script = tiny.settings(), paper("nvae") / "train.py"
    data = tiny.images(chosen)

    def name(changed: Any = chosen, images: Images = data, seed: int = 0, steps: int = 10, file: Path = script) -> str:
        return run_digest(changed, images, seed, steps, file, tiny.CPU)

    def flipped(pixels: Tensor) -> Tensor:
        pixels = pixels.clone()
        pixels[0, 0, 14, 14] ^= 1
        return pixels

    names = [name(), name(seed=1), name(steps=11), name(file=paper("nvae") / "ablate.py")]
    names += [name(images=replace(data, **{part: flipped(getattr(data, part))})) for part in ("train", "validation")]
    # The comparisons keep measured results in the state folder, so the images they are measured on count too.
    names += [name(images=replace(data, test=flipped(data.test)))]
    other = {
        "precision": "bfloat16", "learning_rate": 2e-2, "channels": 8, "kl_balancing": False,
        "decoder_cell": "separable", "bn_swish": "naive", "averaging": 0.5,
        "spectral_weight_initial": 1.0, "pre_post": (1, 1),
    }  # fmt: skip
    names += [name(msgspec.structs.replace(chosen, **{key: value})) for key, value in other.items()]
    assert len(set(names)) == len(names)
    assert name() == names[0]


# --- divergence ---


def _diverging(run: Trainer, at: int, damage: Any) -> Trainer:
    terms = run.terms

    def damaged(k: int) -> losses.Terms:
        good = terms(k)
        return damage(good) if k == at else good  # type: ignore[no-any-return]

    run.terms = damaged  # type: ignore[method-assign]
    return run


DAMAGE = {
    "the bound is not a number": lambda t: replace(t, loss=t.loss * math.nan, bound_nats=t.bound_nats * math.nan),
    "the bound is too large": lambda t: replace(t, bound_nats=t.bound_nats * 0 + 2 * experiment.LOSS_BOUND),
    # A penalty or a backward pass that overflows spoils the weights while this step's bound still looks well.
    "only the gradient is not a number": lambda t: replace(t, loss=t.loss * math.nan),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_divergence_names_step_and_cause_and_keeps_the_last_good_state(name: str, tmp_path: Path) -> None:
    run = _diverging(tiny.trainer(), 2, DAMAGE[name])
    with StateFolder("run", "key", tmp_path) as folder:
        with pytest.raises(Divergence, match=r"diverged at step \d: \w+ = .* \(bound") as caught:
            train(run, folder, "run", save_seconds=ALWAYS)
        state = folder.load()
    assert state is not None
    assert caught.value.step == 2
    assert state["step"] == 2
    assert all(torch.isfinite(value).all() for value in state["state"]["model"].values())
