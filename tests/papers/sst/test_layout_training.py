"""Graph-layout models: what they sample, the bound of a batch, golden losses, resuming, arms and the stages around."""

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from papers.sst.graph_layout import draw_layouts
from papers.sst.layout_graphs import LOWEST, hard, locations, outputs, relaxed
from papers.sst.layout_metrics import elbo, nll_nats, utility_kl_nats
from papers.sst.layout_restarts import edge_numbers, train
from papers.sst.layout_training import (
    DATA_SEEDS,
    HORIZONS,
    draw_split,
    measure,
    read_arm,
    steps_of,
    trajectory_nll_nats,
)
from papers.sst.model import Decoder, directed_from_undirected, rollout, undirected_from_directed
from papers.sst.settings import PARAMS, load
from papers.sst.train import first_seed
from shared.data.batches import seed_step
from shared.errors import UserError
from shared.files import read_json
from shared.settings import read_yaml
from shared.training.checkpoint import StateFolder
from shared.training.loop import fit
from tests.papers.sst import golden, tiny

N = 10
UNDIRECTED = N * (N - 1) // 2


# --- what is sampled ---


@pytest.mark.parametrize("structure", ["tree", "top_k"])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 5.0])
def test_relaxed_graphs_have_n_minus_1_edges_in_both_directions(structure, temperature: float) -> None:
    utilities = torch.randn(7, UNDIRECTED, generator=torch.Generator().manual_seed(0))
    for edges in (relaxed(utilities, structure, N, temperature), hard(utilities, structure, N)):
        assert edges.shape == (7, N * (N - 1))
        torch.testing.assert_close(edges.sum(1), torch.full((7,), 2.0 * (N - 1)))
        there = undirected_from_directed(edges, N)
        torch.testing.assert_close(directed_from_undirected(there, N), edges)


def test_independent_edges_are_gumbel_softmax_in_each_direction() -> None:
    utilities = torch.randn(3, N * (N - 1), 2, generator=torch.Generator().manual_seed(0))
    difference = utilities[..., 1] - utilities[..., 0]
    torch.testing.assert_close(relaxed(utilities, "independent", N, 0.7), torch.sigmoid(difference / 0.7))
    assert torch.equal(hard(utilities, "independent", N), (difference > 0).float())


@pytest.mark.parametrize("structure", ["tree", "top_k", "independent"])
def test_relaxed_graphs_tend_to_the_hard_ones(structure) -> None:
    shape = (5, N * (N - 1), 2) if structure == "independent" else (5, UNDIRECTED)
    utilities = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    gap = [(relaxed(utilities, structure, N, t) - hard(utilities, structure, N)).abs().mean() for t in (10.0, 0.4)]
    assert gap[1] < 0.6 * gap[0]


def test_only_trees_without_another_relaxation() -> None:
    with pytest.raises(ValueError, match="no relaxation 'euclidean' of 'tree'"):
        relaxed(torch.randn(1, UNDIRECTED), "tree", N, 1.0, "euclidean")


def test_locations_are_bounded_below_and_leave_large_ones_alone() -> None:
    logits = torch.tensor([-1e3, -4.0, 0.0, 20.0]).repeat(N * (N - 1), 1)
    found = torch.stack([locations(logits[:, k : k + 1][None], "tree", N)[0, 0] for k in range(4)])
    assert found[0] == pytest.approx(LOWEST)
    assert found[1] == pytest.approx(LOWEST + math.log(2))
    torch.testing.assert_close(found[2:], F.softplus(torch.tensor([4.0, 24.0])) - 4)
    assert locations(torch.randn(2, N * (N - 1), 2), "independent", N).shape == (2, N * (N - 1), 2)
    assert (outputs("independent"), outputs("tree"), outputs("top_k")) == (2, 1, 1)


# --- the bound of a batch ---


def test_random_transitions_estimate_the_whole_sum_without_bias() -> None:
    """All T - 1 transitions give the sum exactly; two at a time give it in the mean."""
    torch.manual_seed(0)
    decoder, frames = Decoder(8, 2), tiny.layouts().frames[:4]
    edges = torch.rand(4, N * (N - 1))
    with torch.no_grad():
        whole = nll_nats(rollout(decoder, frames, edges, 1), frames[:, :, 1:])
        torch.testing.assert_close(trajectory_nll_nats(decoder, frames, edges, 9), whole)
        torch.testing.assert_close(trajectory_nll_nats(decoder, frames, edges, 99), whole)
        draws = torch.stack([trajectory_nll_nats(decoder, frames, edges, 2) for _ in range(400)])
        error = draws.std(0) / math.sqrt(len(draws))
    assert ((draws.mean(0) - whole).abs() < 5 * error).all()
    assert (draws.std(0) > 0).all()


def test_rollouts_are_the_authors_for_nine_or_ten_steps() -> None:
    torch.manual_seed(0)
    decoder, frames = Decoder(8, 2), tiny.layouts(20).frames[:2]
    edges = torch.rand(2, N * (N - 1))
    with torch.no_grad():
        found = trajectory_nll_nats(decoder, frames, edges, "rollout")
        assert torch.equal(found, nll_nats(rollout(decoder, frames, edges, 10), frames[:, :, 1:]))


def test_the_weight_multiplies_the_divergence() -> None:
    """Weight 2 is the released code's count of undirected edges; a large one shows it without rounding."""
    losses = []
    for weight in (1.0, 1e6 + 1):
        run = tiny.trainer(arm={"kl_weight": weight})
        torch.manual_seed(3)
        losses.append(run.loss(run.frames[:5]))
    difference = losses[1]["loss"].item() - losses[0]["loss"].item()
    assert difference == pytest.approx(1e6 * losses[0]["kl_nats"].item(), rel=1e-3)


@pytest.mark.parametrize(
    "arm", [{"gradient": "reinforce"}, {"gradient": "reinforce", "samples": 5}, {"gradient": "nvil"}]
)
def test_score_functions_leave_the_decoder_its_own_gradient(arm) -> None:
    """The decoder is trained on the loss alone; the encoder hears of the loss through the score."""
    run = tiny.trainer(arm=arm)
    run.average.value = 0.0  # else the first batch of one sample has a baseline equal to its mean
    torch.manual_seed(0)
    frames = run.frames[:4]
    parts = run.loss(frames)
    gradient = torch.autograd.grad(parts["loss"], list(run.model.decoder.parameters()), retain_graph=True)
    torch.manual_seed(0)
    again = tiny.trainer(arm=arm)
    again.average.value = 1e4  # another baseline
    torch.manual_seed(0)
    other = torch.autograd.grad(again.loss(frames)["loss"], list(again.model.decoder.parameters()))
    for a, b in zip(gradient, other, strict=True):
        torch.testing.assert_close(a, b)
    encoder = torch.autograd.grad(parts["loss"], list(run.model.encoder.parameters()))
    assert sum(x.abs().sum() for x in encoder) > 0


@pytest.mark.parametrize("name", golden.ARMS)
def test_some_steps_lower_the_loss_of_a_fixed_batch(name: str) -> None:
    arm = dict(golden.ARMS[name])
    run = tiny.trainer(arm.pop("structure"), arm=arm)
    run.steps = 10**6  # a constant learning rate
    found = []
    for k in range(40):
        seed_step(0, k)
        found.append(float(run.step(10)["nll_nats"]))
    assert sum(found[-10:]) < 0.7 * sum(found[:10])


@pytest.mark.parametrize("name", golden.ARMS)
def test_golden_losses(name: str) -> None:
    expected = read_json(golden.FILE)
    got = golden.losses(name)
    assert len(got) == 10
    assert got == pytest.approx(expected["losses"][name], rel=expected["relative_tolerance"])


def test_arms_of_a_seed_begin_alike() -> None:
    first, second = tiny.trainer("tree"), tiny.trainer("top_k")
    for a, b in zip(first.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(a, b)
    other = tiny.trainer("tree", seed=1)
    assert not torch.equal(next(first.model.parameters()), next(other.model.parameters()))


@pytest.mark.parametrize("arm", [{}, {"gradient": "nvil"}])
@pytest.mark.parametrize("stop", [1, 4, 6, 7])
def test_a_resumed_run_ends_in_the_same_bits(tmp_path: Path, arm: dict, stop: int) -> None:
    """Two starts of three steps and seven more: stopped inside the first or second start, between, and after them."""
    whole, stopped, again = (tiny.restarts(arm=arm) for _ in range(3))
    with StateFolder("whole", "key", tmp_path) as folder:
        record = train(whole, folder, 0, "whole")

    def broken(k: int) -> dict[str, torch.Tensor | float]:
        if k == stop:
            raise KeyboardInterrupt
        return stopped.step(k)

    with StateFolder("stopped", "key", tmp_path) as folder:
        parts = {"run": stopped}
        with pytest.raises(KeyboardInterrupt):
            fit(broken, steps=stopped.steps, seed=0, state=parts, folder=folder, record_every=1, save_seconds=-1.0)
        resumed = train(again, folder, 0, "again")
    assert resumed.interruptions == 1
    assert resumed.rows == record.rows
    assert again.starts == whole.starts
    assert again.curve == whole.curve
    assert again.trainer.average.value == whole.trainer.average.value
    for key, value in whole.trainer.model.state_dict().items():
        assert torch.equal(value, again.trainer.model.state_dict()[key])


def test_the_best_start_goes_on_where_it_was() -> None:
    """The run ends as the best start trained alone would, given the same noise in the same steps."""
    run = tiny.restarts(count=3)
    assert run.steps == 2 * 3 + tiny.STEPS
    for k in range(run.steps):
        seed_step(0, k)
        run.step(k)
    bounds = [row["elbo_nats"] for row in run.starts]
    best = max(range(3), key=bounds.__getitem__)
    assert run.start == best
    assert run.trainer.seed == best
    alone = tiny.trainer(seed=best)
    for own in range(tiny.STEPS):
        seed_step(0, own + 3 * best if own < 3 else own + 6)
        alone.step(own)
    for a, b in zip(run.trainer.model.parameters(), alone.model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert run.curve[0]["elbo_nats"] == bounds[best]
    assert [row["step"] for row in run.curve] == list(range(3, tiny.STEPS + 1))


def test_a_single_start_is_the_training_itself() -> None:
    run, alone = tiny.restarts(count=1), tiny.trainer()
    for k in range(tiny.STEPS):
        for each in (run, alone):
            seed_step(0, k)
            each.step(k)
    assert run.steps == tiny.STEPS
    for a, b in zip(run.trainer.model.parameters(), alone.model.parameters(), strict=True):
        assert torch.equal(a, b)


# --- measuring ---


def test_measured_bound_is_that_of_its_parts() -> None:
    run = tiny.trainer()
    layouts = tiny.layouts(10, "validation")
    found = measure(run.model, run.arm, layouts, run.device)
    with torch.inference_mode():
        run.model.eval()
        where = locations(run.model.encoder(layouts.frames), "tree", N)
        predicted = rollout(run.model.decoder, layouts.frames, found.edges, 1)
        expected = elbo(nll_nats(predicted, layouts.frames[:, :, 1:]), utility_kl_nats(where, N))
    assert found.elbo.elbo_nats == pytest.approx(expected.elbo_nats, rel=1e-3)
    assert found.elbo.elbo_nats - found.elbo.elbo_double_kl_nats == pytest.approx(found.elbo.kl_nats)
    assert torch.equal(found.likeliest, hard(where, "tree", N))
    again = measure(run.model, run.arm, layouts, run.device)
    assert torch.equal(found.edges, again.edges)
    assert not torch.equal(found.edges, measure(run.model, run.arm, layouts, run.device, seed=1).edges)


def test_edge_numbers_of_the_truth_and_of_its_complement() -> None:
    layouts = tiny.layouts(10, "validation")
    true = directed_from_undirected(layouts.trees, N)
    found = measure(tiny.trainer().model, tiny.trainer().arm, layouts, torch.device("cpu"))
    perfect = edge_numbers(type(found)(found.elbo, true, true), layouts)
    assert (perfect["edge_precision"], perfect["raw_precision"], perfect["likeliest_raw_precision"]) == (100, 100, 100)
    opposite = edge_numbers(type(found)(found.elbo, 1 - true, true), layouts)
    assert (opposite["edge_precision"], opposite["raw_precision"]) == (100, 0)


def test_splits_are_those_of_the_generator() -> None:
    s = load("smoke")
    for split, count in (("train", s.layout_graphs), ("validation", 5), ("test", s.layout_test_graphs)):
        got = draw_split(s, 20, split)
        expected = draw_layouts(split, count, 20, DATA_SEEDS[split])
        assert got.frames.shape == (count, N, 20, 2)
        torch.testing.assert_close(got.frames, expected.frames, atol=1e-6, rtol=0)
        assert torch.equal(got.trees, expected.trees)


# --- arms ---


def test_every_arm_of_the_file_can_be_read_and_takes_a_step() -> None:
    document = read_yaml(PARAMS)
    assert set(document["arms_to_run"]) == set(document["arms"])
    for name in document["arms"]:
        arm, s = read_arm("laptop", name)
        assert s.layout_steps == ((s.layout_short_steps,) * 2 if arm.short else load("laptop").layout_steps)
        assert [steps_of(s, horizon) for horizon in HORIZONS] == list(s.layout_steps)


def test_short_arms_differ_from_the_short_tree_in_what_they_are_named_after() -> None:
    """They are compared: one budget, one learning rate."""
    arms = [read_arm("laptop", name) for name in read_yaml(PARAMS)["arms"]]
    short = [s for arm, s in arms if arm.short]
    assert len(short) >= 4
    assert len({(s.layout_steps, s.layout_batch, s.layout_starts, s.layout_hidden) for s in short}) == 1


def test_unknown_and_bad_arms_are_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no arm named 'forest'; there are: tree"):
        read_arm("laptop", "forest")
    path = tmp_path / "params.yaml"
    path.write_text(PARAMS.read_text().replace("gradient: nvil", "gradient: guess"))
    with pytest.raises(UserError, match="arms: nvil_short"):
        read_arm("laptop", "nvil_short", path)
    path.write_text(PARAMS.read_text().replace("listops_longest: 12", "listops_longest: 3"))
    with pytest.raises(UserError, match="listops_longest"):
        load("smoke", path)


def test_no_two_seeds_share_a_start() -> None:
    seeds = [first_seed(seed, start) for seed in range(10) for start in range(100)]
    assert len(set(seeds)) == len(seeds)
