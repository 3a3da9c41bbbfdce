"""Langevin chains: their stationary law, what they leave alone, what they cost, and their diagnostics."""

import math

import pytest
import scipy.stats
import torch
from torch import Tensor, nn

from papers.jem.energy import energy, joint_loss, log_joint, log_marginal, score
from papers.jem.sgld import (
    Langevin,
    autocorrelation,
    chain_generator,
    count_passes,
    largest_curvature,
    run_chains,
    still,
    trace_chains,
)
from shared.data.batches import seed_step


def gaussian(variance: float = 1.0):
    """One logit -||x||^2 / (2 variance)."""

    def network(x: Tensor) -> Tensor:
        return -x.square().flatten(1).sum(1, keepdim=True) / (2 * variance)

    return network


def mlp(inputs: int = 3, classes: int = 4) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, 16), nn.SiLU(), nn.Linear(16, classes))


def convolutions() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 8, 3, 2, 1), nn.SiLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.Flatten(), nn.Linear(32, 3))


LAWS = [
    (1.0, 0.01, 1.0, 1.00e-4),
    (1.0, 0.01, 0.6, 1.80e-4),
    (0.1, math.sqrt(0.2), 1.0, 1.0526),
    (0.5, 1.0, 1.0, 1.3333),
]


@pytest.mark.parametrize(("step_size", "noise", "variance", "expected"), LAWS)
def test_the_variance_at_which_chains_settle(step_size: float, noise: float, variance: float, expected: float):
    langevin = Langevin(100, step_size, noise)
    assert langevin.stationary_variance(1 / variance) == pytest.approx(expected, rel=1e-3)
    count = 40_000
    x = run_chains(gaussian(variance), torch.zeros(count, 1), langevin)
    # (count - 1) s^2 / sigma^2 follows a chi-squared law: four of its standard deviations.
    assert x.var().item() == pytest.approx(expected, rel=4 * math.sqrt(2 / count) + 1e-4)
    p_value = scipy.stats.kstest(
        x[:, 0].numpy(), "norm", args=(0, math.sqrt(langevin.stationary_variance(1 / variance)))
    )
    assert p_value.pvalue > 1e-3


def test_steps_past_twice_the_inverse_curvature_run_away():
    start = torch.full((8, 1), 1e-3)
    wild = run_chains(gaussian(0.45), start, Langevin(50, 1.0, 0.0))
    tame = run_chains(gaussian(0.55), start, Langevin(50, 1.0, 0.0))
    assert wild.abs().min() > 1
    assert tame.abs().max() < 1e-3
    langevin = Langevin()
    assert langevin.stationary_variance(1 / 0.5) == math.inf
    assert langevin.stationary_variance(-1.0) == math.inf


def test_matched_noise_samples_the_density_for_small_steps():
    errors = []
    for step_size in (0.5, 0.1, 0.02):
        langevin = Langevin(1, step_size, None)
        assert langevin.sigma == pytest.approx(math.sqrt(2 * step_size))
        assert langevin.temperature == pytest.approx(1)
        variance = langevin.stationary_variance(1.0)
        assert variance == pytest.approx(1 / (1 - step_size / 2))
        errors.append(variance - 1)
    assert errors == sorted(errors, reverse=True)
    assert Langevin().temperature == pytest.approx(5e-5)


def test_without_noise_the_density_never_falls():
    network = mlp()
    trace = trace_chains(network, torch.randn(32, 3), Langevin(50, 0.05, 0.0))
    rises = trace.log_density.diff(dim=0)
    assert rises.min() > -1e-6
    assert (trace.log_density[-1] - trace.log_density[0]).min() > 1e-3


def test_one_move_is_the_formula():
    network, x = mlp(), torch.randn(5, 3)
    langevin = Langevin(1, 0.3, 0.2)
    moved = run_chains(network, x, langevin, generator=torch.Generator().manual_seed(1))
    noise = torch.empty(5, 3).normal_(generator=torch.Generator().manual_seed(1))
    assert torch.allclose(moved, x + 0.3 * score(network, x) + 0.2 * noise, atol=1e-6)
    labels = torch.tensor([0, 1, 2, 3, 0])
    moved = run_chains(network, x, Langevin(1, 0.3, 0.0), labels=labels)
    assert torch.allclose(moved, x + 0.3 * score(network, x, labels), atol=1e-6)


def test_chains_on_one_logit_climb_that_logit():
    network, x, labels = mlp(), torch.randn(40, 3), torch.arange(40) % 4
    moved = run_chains(network, x, Langevin(30, 0.1, 0.0), labels=labels)
    assert (log_joint(network(moved), labels) > log_joint(network(x), labels)).all()


def test_clamps_are_off_unless_asked_for():
    def steep(x: Tensor) -> Tensor:
        return 5 * x.sum(1, keepdim=True)

    start = torch.zeros(3, 2)
    assert torch.allclose(run_chains(steep, start, Langevin(2, 1.0, 0.0)), torch.full((3, 2), 10.0))
    clamped = run_chains(steep, start, Langevin(2, 1.0, 0.0, gradient_clamp=0.5))
    assert torch.allclose(clamped, torch.ones(3, 2))
    inside = run_chains(steep, start, Langevin(2, 1.0, 0.3, sample_clamp=1.0))
    assert torch.equal(inside, torch.ones(3, 2))
    norm = trace_chains(steep, start, Langevin(1, gradient_clamp=0.5)).gradient_norm
    assert norm[0, 0].item() == pytest.approx(5 * math.sqrt(2)), "the trace tells the score before the clamp"


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_chains_leave_everything_else_alone(precision: str):
    network = convolutions()
    network[0].weight.requires_grad_(False)
    network[3].eval()
    network(torch.randn(2, 1, 8, 8)).sum().backward()
    gradients = [None if p.grad is None else p.grad.clone() for p in network.parameters()]
    weights = [p.detach().clone() for p in network.parameters()]
    start = torch.rand(4, 1, 8, 8, requires_grad=True)
    before = start.detach().clone()
    with torch.inference_mode():  # as after training
        inferred = run_chains(network, start, Langevin(3), generator=chain_generator(0, 0), precision=precision)
    x = run_chains(network, start, Langevin(3), generator=chain_generator(0, 0), precision=precision)
    assert torch.equal(x, inferred)
    assert x.dtype == torch.float32
    assert not x.requires_grad
    assert x.grad_fn is None
    assert not x.is_inference()
    assert torch.equal(start, before)
    assert start.grad is None
    for p, gradient, weight in zip(network.parameters(), gradients, weights):
        assert torch.equal(p, weight)
        assert (p.grad is None) if gradient is None else torch.equal(p.grad, gradient)
    assert [p.requires_grad for p in network.parameters()] == [False, True, True, True, True, True]
    assert [m.training for m in network] == [True, True, True, False, True]


def test_no_gradient_appears_where_none_was():
    network = mlp()
    run_chains(network, torch.randn(4, 3), Langevin(2))
    largest_curvature(network, torch.randn(4, 3), iterations=2)
    assert all(p.grad is None for p in network.parameters())


def test_a_network_that_fails_gets_its_parameters_back():
    network = mlp()
    with still(network):
        assert not any(p.requires_grad for p in network.parameters())
        assert not network.training
    with pytest.raises(RuntimeError, match="shapes"):
        run_chains(network, torch.zeros(1, 2), Langevin(1))
    assert all(p.requires_grad for p in network.parameters())
    assert network.training


def test_chains_run_in_evaluation_mode():
    network = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.9), nn.Linear(4, 2))
    x = torch.randn(4, 3)
    first, second = (run_chains(network, x, Langevin(2, noise=0.0)) for _ in range(2))
    assert torch.equal(first, second)


def test_the_same_generator_gives_the_same_chains():
    network, x = mlp(), torch.randn(4, 3)
    first, again, other = (run_chains(network, x, Langevin(3), generator=chain_generator(s, 7)) for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    state = torch.random.get_rng_state()
    run_chains(network, x, Langevin(3), generator=chain_generator(1, 7))
    assert torch.equal(torch.random.get_rng_state(), state), "the global generator is not advanced"


def test_the_seeds_of_chains_are_those_of_no_training_step():
    seed_step(3, 5)
    training = torch.initial_seed()
    seeds = {chain_generator(seed, step).initial_seed() for seed in range(20) for step in range(100)}
    assert len(seeds) == 2000
    assert training not in seeds
    assert all(seed % 2 == 0 for seed in seeds)
    assert training % 2 == 1


@pytest.mark.parametrize("steps", [0, 1, 20])
def test_a_training_step_costs_eta_and_three_passes(steps: int):
    network, x, y = mlp(), torch.randn(6, 3), torch.tensor([0, 1, 2, 3, 0, 1])
    with count_passes(network) as passes:
        samples = run_chains(network, torch.rand(6, 3), Langevin(steps))
        joint_loss(network(x), y, network(x), network(samples)).total.backward()
    assert passes.calls == steps + 3
    assert passes.examples == 6 * (steps + 3)
    network(x)
    assert passes.calls == steps + 3, "counted in the block only"


def test_bfloat16_gradients_are_nearly_float32_ones():
    network, x = convolutions(), torch.rand(16, 1, 8, 8)
    langevin = Langevin(1, 1.0, 0.0)
    exact, rough = (run_chains(network, x, langevin, precision=p) - x for p in ("float32", "bfloat16"))
    assert torch.nn.functional.cosine_similarity(exact.flatten(), rough.flatten(), dim=0) > 0.999
    assert not torch.equal(exact, rough), "autocast did nothing"


def test_images_are_held_channels_last():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.LazyLinear(2))
    x = torch.rand(2, 3, 8, 8)
    network(x)
    assert run_chains(network, x, Langevin(1)).is_contiguous(memory_format=torch.channels_last)


def test_a_trace_tells_what_the_chain_did():
    network, x = mlp(), torch.randn(6, 3)
    langevin = Langevin(5, 0.1, 0.1)
    trace = trace_chains(network, x, langevin, generator=chain_generator(0, 0), keep_states=True)
    assert torch.equal(trace.final, run_chains(network, x, langevin, generator=chain_generator(0, 0)))
    assert torch.equal(trace.states[0], x)
    for k in range(5):
        assert torch.allclose(trace.log_density[k], log_marginal(network(trace.states[k])))
        assert torch.allclose(trace.gradient_norm[k], score(network, trace.states[k]).norm(dim=1), rtol=1e-5)
    assert trace_chains(network, x, langevin).states is None


def test_autocorrelation_of_a_stationary_chain():
    """On a Gaussian the chain is autoregressive: (1 - a)^lag."""
    langevin = Langevin(200, 0.2, 1.0)
    start = math.sqrt(langevin.stationary_variance(1.0)) * torch.randn(1000, 1)
    states = trace_chains(gaussian(), start, langevin, keep_states=True).states
    rho = autocorrelation(states, 6)
    assert rho[0] == 1
    assert rho.tolist() == pytest.approx([0.8**lag for lag in range(7)], abs=0.02)


def test_chains_stuck_in_modes_of_their_own_stay_correlated():
    centres = torch.tensor([-5.0, 5.0]).repeat(50)[:, None]
    states = centres + 0.1 * torch.randn(40, 100, 1)
    assert autocorrelation(states, 20)[20] > 0.99


def test_curvature_of_a_quadratic_energy():
    eigenvalues = torch.tensor([[3.0, 1.0, -2.0], [0.5, -4.0, 0.2], [-1.0, -3.0, -2.0]])
    rotation = torch.linalg.qr(torch.randn(3, 3)).Q

    def network(x: Tensor) -> Tensor:
        return -0.5 * (eigenvalues * (x @ rotation).square()).sum(1, keepdim=True)

    found = largest_curvature(network, torch.randn(3, 3), iterations=60)
    assert found.tolist() == pytest.approx([3.0, 0.5, -1.0], abs=1e-3)


def test_curvature_of_a_network_by_the_whole_hessian():
    network = mlp().double()
    x, labels = torch.randn(6, 3, dtype=torch.float64), torch.tensor([0, 1, 2, 3, 0, 1])
    for given in (None, labels):
        parts = [None if given is None else given[i : i + 1] for i in range(6)]
        hessians = [
            torch.autograd.functional.hessian(lambda v, part=part: energy(network(v[None]), part).sum(), row)
            for row, part in zip(x, parts)
        ]
        exact = torch.linalg.eigvalsh(torch.stack(hessians))[:, -1]
        few, many = (largest_curvature(network, x, given, iterations=n) for n in (3, 400))
        assert torch.allclose(many, exact, rtol=1e-3, atol=1e-6)
        assert (few <= exact + 1e-9).all()


def test_a_linear_energy_has_no_curvature():
    x = torch.randn(4, 3)
    assert torch.equal(largest_curvature(nn.Linear(3, 2), x, torch.tensor([0, 1, 0, 1])), torch.zeros(4))


WRONG = [
    ({"steps": -1}, "steps"),
    ({"step_size": 0.0}, "step size"),
    ({"step_size": math.nan}, "step size"),
    ({"noise": -0.1}, "noise"),
    ({"gradient_clamp": 0.0}, "gradient_clamp"),
    ({"sample_clamp": -1.0}, "sample_clamp"),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG)
def test_wrong_settings_are_refused(arguments: dict[str, float], message: str):
    with pytest.raises(ValueError, match=message):
        Langevin(**arguments)


def test_wrong_chains_are_refused():
    with pytest.raises(ValueError, match="no trace"):
        trace_chains(mlp(), torch.zeros(1, 3), Langevin(0))
    with pytest.raises(ValueError, match="lags"):
        autocorrelation(torch.randn(5, 2, 1), 4)
    with pytest.raises(ValueError, match="not vary"):
        autocorrelation(torch.ones(5, 2, 1), 1)
