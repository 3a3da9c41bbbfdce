"""The stage of the flow: learning, resuming, rates, scores with closed forms, and what the stage leaves behind."""

import itertools
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from papers.jem import likelihood
from papers.jem.flow import EDGE, Flow, bits_per_dim, dequantise, from_logits, to_logits
from papers.jem.likelihood import FlowTrainer, familiarity, mean_bits, rate_at, score
from papers.jem.ood import auroc
from papers.jem.settings import load
from shared.data.batches import seed_step
from shared.errors import UserError
from shared.measurements import read_metrics
from shared.results import read_rows
from shared.training.checkpoint import StateFolder
from shared.training.loop import fit
from tests.papers.jem import tiny
from tests.papers.jem.tiny_data import tiny_data

CPU = torch.device("cpu")


def trainer(seed: int = 0, **changes: object) -> FlowTrainer:
    """On grey noise of 4 x 4 pixels."""
    return FlowTrainer(msgspec.structs.replace(load("smoke"), **changes), tiny_data(), seed, CPU)


class Blob(Flow):
    """In the place of a flow: an isotropic Gaussian around an image of the grey level 0."""

    def log_prob_of_logits(self, y: Tensor, precision: str = "float32") -> Tensor:
        x = from_logits(y)
        of_pixels = -x.flatten(1).square().sum(1) / (2 * 0.25) - 0.5 * self.dims * math.log(2 * math.pi * 0.25)
        return of_pixels - to_logits(x)[1]


def test_a_new_flow_begins_near_the_images_it_has_seen() -> None:
    """After the data-dependent start a batch has codes of variance 1, and a loss as small as a Gaussian's."""
    run = FlowTrainer(tiny.settings(), tiny.data(), 0, CPU)
    x = dequantise(likelihood.unlabelled_batch(run.data, 40, 0, 0), torch.Generator().manual_seed(1))
    z, _ = run.flow(x)
    assert float(z.detach().square().mean()) == pytest.approx(1, abs=0.2)
    assert float(bits_per_dim(run.flow.log_prob(x).detach(), 784).mean()) < 8


def test_steps_raise_the_likelihood_of_the_images() -> None:
    run = FlowTrainer(tiny.settings(steps=1000), tiny.data(), 0, CPU)
    found = []
    for k in range(30):
        seed_step(0, 0)
        run.step(200 + k % 2)  # the same two batches again and again
        found.append(mean_bits(run.flow, run.data.train[:40], 0) if k in (0, 29) else math.nan)
    assert found[29] < found[0] - 0.2


def test_a_resumed_run_ends_in_the_same_bits(tmp_path: Path) -> None:
    """Five steps with a stop after the third, and without: weights, moments, looks and record."""
    whole, stopped, again = (trainer(steps=6) for _ in range(3))
    with StateFolder("whole", "key", tmp_path) as folder:
        record = likelihood.train(whole, folder, "whole")
    assert not torch.equal(whole.vector, stopped.vector)

    def broken(k: int) -> dict[str, Tensor | float]:
        if k == 3:
            raise KeyboardInterrupt
        return stopped.step(k)

    guard = ("train_bits_per_dim", likelihood.BITS_BOUND)
    with StateFolder("stopped", "key", tmp_path) as folder:
        with pytest.raises(KeyboardInterrupt):
            fit(broken, steps=whole.steps, seed=0, state=stopped.state(), folder=folder, guard=guard, record_every=1,
                save_seconds=-1.0)  # fmt: skip
        resumed = likelihood.train(again, folder, "again")
    assert len(record.rows) == whole.steps == 5
    assert resumed.interruptions == 1
    assert resumed.rows == record.rows
    assert torch.equal(again.vector, whole.vector)
    assert again.looks.rows == whole.looks.rows
    first, second = (each.optimizer.state_dict()["state"][0]["exp_avg"] for each in (again, whole))
    assert torch.equal(first, second)


def test_seeds_differ_and_repeat() -> None:
    assert torch.equal(trainer(1).vector, trainer(1).vector)
    assert not torch.equal(trainer(1).vector, trainer(2).vector)


def test_the_rate_rises_stays_and_falls_to_nothing() -> None:
    rates = [rate_at(k, 1000) for k in range(1001)]
    assert rates[0] == pytest.approx(likelihood.RATE / 100)
    assert rates[99:401] == pytest.approx([likelihood.RATE] * 302)
    assert all(a > b for a, b in itertools.pairwise(rates[400:]))
    assert rates[1000] == 0
    assert rate_at(0, 6) == likelihood.RATE


def test_scores_of_a_gaussian_are_its_density_and_minus_its_slope() -> None:
    blob = Blob(1, 4)
    images = torch.rand(30, 1, 4, 4) * 2 - 1
    found = score(blob, images, seed=5)
    x = dequantise(images, likelihood.chain_generator(5, 2**29))
    density = torch.from_numpy(stats.norm.logpdf(x.numpy(), scale=0.5)).flatten(1).sum(1).float()
    torch.testing.assert_close(found["log_density"], density, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found["approximate_mass"], -x.flatten(1).norm(dim=1) / 0.25, rtol=1e-3, atol=1e-3)
    # With s = sigmoid(y): log p(y) = log p(x) + log dx/dy, and dx/dy = s (1 - s) / (1/2 - EDGE).
    s = EDGE + (0.5 - EDGE) * (x + 1)
    slope = -x / 0.25 * s * (1 - s) / (0.5 - EDGE) + 1 - 2 * s
    torch.testing.assert_close(found["approximate_mass_logit"], -slope.flatten(1).norm(dim=1), rtol=1e-3, atol=1e-3)


def test_scores_leave_no_gradient_and_do_not_depend_on_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    flow, images = Flow(1, 4, steps=(1, 1), hidden=(3, 3)), torch.rand(9, 1, 4, 4) * 2 - 1
    whole = score(flow, images, 0)
    assert all(p.grad is None and p.requires_grad for p in flow.parameters())
    monkeypatch.setattr(likelihood, "_BATCH", 4)
    for name, values in score(flow, images, 0).items():
        torch.testing.assert_close(values, whole[name])


def test_familiarity_has_the_names_and_tables_of_the_networks() -> None:
    images = 0.2 * torch.randn(40, 1, 4, 4).clamp(-3, 3)
    outside = {"flat": torch.zeros(25, 1, 4, 4), "bright": torch.ones(25, 1, 4, 4)}
    blob = Blob(1, 4)
    found = familiarity(blob, images, outside, 0)
    names = {f"{kind}_mean_{name}" for kind in likelihood.SCORES for name in ("test", *outside)}
    names |= {f"auroc_{kind}_{name}" for kind in likelihood.SCORES for name in ("mean", *outside)}
    assert found["numbers"].keys() == names
    # The flat grey image is the densest of all, and yet no sample of the Gaussian: the failure that Glow is known for.
    assert found["numbers"]["auroc_log_density_flat"] == 0
    assert found["numbers"]["auroc_log_density_bright"] == 1
    assert found["numbers"]["auroc_log_density_mean"] == 0.5
    inside, out = (score(blob, x, 0)["approximate_mass"] for x in (images, outside["bright"]))
    assert found["numbers"]["auroc_approximate_mass_bright"] == auroc(inside, out)
    for kind in likelihood.SCORES:
        rows = found["tables"][f"histogram_{kind}"]
        assert list(rows[0]) == ["low", "width", "test", *outside]
        for name in ("test", *outside):
            assert sum(row[name] * row["width"] for row in rows) == pytest.approx(1, rel=1e-5)


def test_mean_bits_of_a_gaussian() -> None:
    pixels = tiny_data().test[:40]
    x = dequantise(likelihood.scale(pixels), likelihood.chain_generator(3, 2**29))
    expected = bits_per_dim(Blob(1, 4).log_prob(x), 16).mean()
    assert mean_bits(Blob(1, 4), pixels, 3) == pytest.approx(float(expected), rel=1e-5)


@contextmanager
def small_stage(patch: pytest.MonkeyPatch, folder: Path) -> Iterator[None]:
    """The stage on grey noise, with its files below `folder`."""
    original = StateFolder
    sets = {"mnist": torch.rand(9, 1, 4, 4), "uniform": torch.rand(8, 1, 4, 4) * 2 - 1}
    with patch.context() as here:
        here.setattr(likelihood, "load_data", lambda *_, **__: tiny_data())
        here.setattr(likelihood, "out_of_distribution_sets", lambda *_, **__: sets)
        here.setattr(likelihood, "StateFolder", lambda name, key: original(name, key, folder / "states"))
        here.setattr(likelihood, "runs", lambda *_: folder / "runs")
        yield


def test_what_the_stage_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with small_stage(monkeypatch, tmp_path):
        results = [likelihood.one_seed("smoke", seed) for seed in (0, 1)]
        again = likelihood.one_seed("smoke", 0)
        likelihood.write("smoke", (0, 1), results)
    assert again == results[0]  # remembered, not trained again
    folder = tmp_path / "runs" / "likelihood"
    metrics = read_metrics(folder / "metrics.json")
    wanted = {"test_bits_per_dim", "train_bits_per_dim", "train_seconds", "auroc_log_density_mean"}
    assert wanted <= metrics.keys()
    assert all(arms.keys() == {"flow"} and arms["flow"].keys() == {"seed0", "seed1"} for arms in metrics.values())
    tables = {"record", "validation", *(f"histogram_{kind}" for kind in likelihood.SCORES)}
    assert {path.stem for path in (folder / "seed1").glob("*.csv")} == tables
    assert read_rows(folder / "seed0" / "validation.csv")[-1]["step"] == likelihood.steps_of(load("smoke"))
    with np.load(folder / "samples.npz") as file:
        assert file["samples"].shape == (likelihood.SAMPLES, 1, 4, 4)
        assert file["samples"].dtype == np.uint8


def test_a_divergence_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = FlowTrainer.step
    monkeypatch.setattr(FlowTrainer, "step", lambda run, k: {**own(run, k), "train_bits_per_dim": math.inf})
    with small_stage(monkeypatch, tmp_path), pytest.raises(UserError, match=r"the flow of seed 0 diverged.*lower RATE"):
        likelihood.one_seed("smoke", 0)
