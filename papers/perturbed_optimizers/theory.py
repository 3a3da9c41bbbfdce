"""Measure what the paper proves: `python -m papers.perturbed_optimizers.theory --preset laptop`.

Writes `runs/<preset>/theory/metrics.json` and the curves of the figures beside it. Repeats have independent noise and
random scores of their own; what does not depend on them is one exact number. Preset smoke takes fewer samples.
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor

from papers.perturbed_optimizers import convergence, identities
from papers.perturbed_optimizers import settings as paper_settings
from papers.perturbed_optimizers.closed_forms import (
    ranking_maximiser,
    simplex_jacobian,
    simplex_maximiser,
)
from papers.perturbed_optimizers.estimation import asymptotic_covariance, centred, fit_newton, fit_stochastic
from papers.perturbed_optimizers.instances import Instance, instances, monotone_path, repeated, seeded
from papers.perturbed_optimizers.perturbed import Perturbation, draw_noise, perturbed_maximiser
from shared import errors, provenance
from shared.paths import runs
from shared.results import Metrics, put, write_metrics, write_rows
from shared.solvers.simple import argmax

PAPER = "perturbed_optimizers"
SEEDS = range(5)
#: Of the gradient ascent.
STEP = 0.2
TEMPERATURES = (0.05, 0.1, 0.5, 1.0)
#: Of the bias curve; a path's costs stay positive up to 2.
BIAS_TEMPERATURES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)
#: Scores of the variances: two of them are so near that low temperatures mix them too.
NEAR = torch.tensor([-0.6, 1.3, -0.2, 1.1, -1.0], dtype=torch.float64)
#: Scores behind the observed solutions.
HIDDEN = torch.tensor([0.3, -0.2, -0.1], dtype=torch.float64)
Rows = list[dict[str, float]]


def named(value: float) -> str:
    """A number as part of a metric's name: 0.05 -> "0_05", 1.0 -> "1"."""
    return f"{value:g}".replace(".", "_")


def measure_exact(metrics: Metrics) -> None:
    """Identities in float64, which no repeat can change but by rounding."""
    generator = seeded(0, 0)
    for instance in instances(generator):
        violations = identities.convexity_violations(instance, 1000, generator)
        put(metrics, "convexity_violations", instance.name, "exact", violations)
        error = identities.fenchel_young_gradient_error(instance, generator)
        put(metrics, "fy_gradient_error", instance.name, "exact", error)
    put(metrics, "gumbel_cross_entropy_error", "main", "exact", identities.cross_entropy_error(generator))
    put(metrics, "ranking_ranknet_error", "main", "exact", identities.ranknet_error(generator))
    for arm, value in identities.fenchel_young_minimum(generator).items():
        put(metrics, "fy_minimum", arm, "exact", value)
    for arm, value in identities.fenchel_young_at_target(generator).items():
        put(metrics, "fy_at_target", arm, "exact", value)


def measure_identities(seed: int, samples: int, metrics: Metrics) -> None:
    """Gradient, bounds and limits at random scores; softmax; the identity map."""
    key, generator = f"seed{seed}", seeded(seed, 1)
    for instance in instances(generator):
        # A path costs a hundred times an argmax.
        count = samples // 10 if instance.name == "path" else samples
        put(metrics, "gradient_z", instance.name, key, identities.gradient_z(instance, count, generator))
        lower, upper = identities.sandwich(instance, count, generator)
        put(metrics, "sandwich_lower", instance.name, key, lower)
        put(metrics, "sandwich_upper", instance.name, key, upper)
        small = identities.small_epsilon_distance(instance, generator)
        put(metrics, "small_epsilon_distance", instance.name, key, small)
        if instance.name != "path":
            large = identities.large_epsilon_distance(instance)
            put(metrics, "large_epsilon_distance", instance.name, key, large)
    softmax_z, logsumexp_z = convergence.gumbel_z(samples, generator)
    put(metrics, "softmax_z", "gumbel", key, softmax_z)
    put(metrics, "logsumexp_z", "gumbel", key, logsumexp_z)
    for epsilon in (0.1, 1.0, 10.0):
        z = identities.unit_jacobian_z(epsilon, samples, generator)
        put(metrics, "unit_jacobian_z", f"eps{named(epsilon)}", key, z)


def measure_convergence(seed: int, samples: int, metrics: Metrics) -> Rows:
    """Errors of Jacobians and solutions against the number of samples."""
    sizes = [10**power for power in range(1, len(str(samples)))]
    rows: Rows = [{"seed": seed, "samples": size} for size in sizes]
    arms = (
        ("jacobian", "gumbel_simplex"),
        ("jacobian", "gaussian_pair"),
        ("solution", "simplex"),
        ("solution", "ranking"),
    )
    for stream, (kind, arm) in enumerate(arms):
        found, z = convergence.errors(arm, sizes, seeded(seed, 10 + stream))
        put(metrics, f"{kind}_error_slope", arm, f"seed{seed}", convergence.slope(sizes, found))
        put(metrics, f"{kind}_z", arm, f"seed{seed}", z)
        for row, error in zip(rows, found):
            row[f"{kind}_{arm}"] = error
    return rows


def measure_variance(seed: int, samples: int, metrics: Metrics) -> Rows:
    """Spread of the layer's gradient with each control variate, at equal M, for argmax and for paths."""
    rows: Rows = []
    near = Instance("argmax", NEAR, torch.zeros_like(NEAR), argmax, 0.5)
    path = instances(seeded(0, 1))[2]
    for epsilon in TEMPERATURES:
        row: dict[str, float] = {"seed": seed, "epsilon": epsilon}
        for arm in convergence.CONTROLS:
            generator = seeded(seed, 20)
            spread = convergence.vjp_std(near, epsilon, arm, samples // 20, generator)
            put(metrics, f"vjp_std_eps{named(epsilon)}", arm, f"seed{seed}", spread)
            row[f"argmax_{arm}"] = spread
            row[f"path_{arm}"] = convergence.vjp_std(path, epsilon, arm, samples // 200, generator)
            put(metrics, f"vjp_std_path_eps{named(epsilon)}", arm, f"seed{seed}", row[f"path_{arm}"])
        rows.append(row)
    for size in (1, 10, 100):
        bias = convergence.squared_loss_bias(size, 4 * samples, seeded(seed, 21))
        for scheme, (norm, z) in bias.items():
            put(metrics, f"{scheme}_bias_m{size}", "softmax", f"seed{seed}", norm)
            put(metrics, f"{scheme}_bias_z_m{size}", "softmax", f"seed{seed}", z)
    return rows


def bias_rows(samples: int) -> Rows:
    """Distance of the perturbed from the plain solution for each temperature: closed forms, and samples for paths."""
    generator = seeded(0, 1)
    problems = {instance.name: instance for instance in instances(generator)}
    path = problems["path"]
    theta = repeated(path.theta, 1)
    rows: Rows = []
    for epsilon in BIAS_TEMPERATURES:
        noise = draw_noise(theta, Perturbation(1.0, samples // 20), seeded(0, 30))
        mean = perturbed_maximiser(theta, path.solver, Perturbation(epsilon, samples // 20), noise)
        smooth = {
            "argmax": simplex_maximiser(problems["argmax"].theta, epsilon),
            "ranking": ranking_maximiser(problems["ranking"].theta, epsilon, "gaussian"),
            "path": mean[0],
        }
        distances = {
            name: (y - problems[name].solver(problems[name].theta)).norm().item() for name, y in smooth.items()
        }
        rows.append({"epsilon": epsilon, **distances})
    return rows


def measure_estimation(seed: int, replications: int, steps: int, metrics: Metrics) -> None:
    """Scores from 2,000 observed solutions: spread of the exact fit against theory; the doubly stochastic fit.

    Gumbel noise, `eps = 1`. The second fit is of 20 of the data sets, with 10 noises in each of `steps`.
    """
    generator, key, n = seeded(seed, 40), f"seed{seed}", 2000
    noise = Perturbation(1.0, 1, "gumbel")
    blocks = [
        argmax(HIDDEN + draw_noise(HIDDEN.expand(20, n, 3), noise, generator)[0]) for _ in range(replications // 20)
    ]
    means = torch.cat([block.mean(1) for block in blocks])
    exact = fit_newton(means, lambda t: simplex_maximiser(t, 1.0))
    p = simplex_maximiser(HIDDEN, 1.0)
    theory = asymptotic_covariance(simplex_jacobian(HIDDEN, 1.0), p.diag() - torch.outer(p, p))
    ratio = (n * torch.cov(exact.T)).diagonal() / theory.diagonal()
    put(metrics, "estimation_covariance_ratio", "gumbel", key, ratio.mean().item())
    fitted = fit_stochastic(blocks[0], argmax, Perturbation(1.0, 10, "gumbel"), steps, 32, 0.05, generator)
    put(metrics, "estimation_error", "newton", key, _rms(exact[:20] - centred(HIDDEN)))
    put(metrics, "estimation_error", "doubly_stochastic", key, _rms(fitted - centred(HIDDEN)))
    put(metrics, "estimation_error", "between", key, _rms(fitted - exact[:20]))
    put(metrics, "estimation_error", "theory", "exact", (theory.trace() / n).sqrt().item())


def _rms(difference: Tensor) -> float:
    """Root of the mean squared norm of vectors (R, d)."""
    return difference.square().sum(-1).mean().sqrt().item()


def segment_rows(samples: int) -> Rows:
    """Perturbed argmax of three scores along a segment through all three cones; `epsilon` 0 is the plain one."""
    t = torch.linspace(0, 1, 101, dtype=torch.float64)
    ends = torch.tensor([[1.0, 0.2, -1.0], [-1.0, 0.2, 1.0]], dtype=torch.float64)
    theta = torch.lerp(ends[0], ends[1], t.unsqueeze(1))
    noise = draw_noise(theta[:1], Perturbation(1.0, samples), seeded(0, 50)).expand(-1, 101, -1)
    rows: Rows = []
    for epsilon in (0.0, 0.1, 0.3, 1.0):
        p = Perturbation(epsilon or 1.0, samples)
        y = perturbed_maximiser(theta, argmax, p, noise) if epsilon else argmax(theta)
        rows += [
            {"epsilon": epsilon, "t": at.item(), **{f"y{i}": value for i, value in enumerate(row.tolist())}}
            for at, row in zip(t, y)
        ]
    return rows


def measure_ascent(seed: int, samples: int, metrics: Metrics) -> Rows:
    """Thirty steps of gradient ascent on the weight of the upper right cell in a perturbed shortest path."""
    generator, key = seeded(seed, 60), f"seed{seed}"
    theta = instances(generator)[2].theta.unsqueeze(0)
    theta[..., 0, -1] = theta[..., 0, -1] - 0.3
    h = 1e-6 * torch.randn(theta.shape, generator=generator, dtype=theta.dtype)
    hard = (monotone_path(theta + h) - monotone_path(theta - h)).norm() / h.norm()
    put(metrics, "hard_gradient_norm", "path", key, hard.item())
    p = Perturbation(0.5, samples, control="leave_one_out")
    rows: Rows = []
    for step in range(31):
        theta = theta.detach().requires_grad_()
        weight = perturbed_maximiser(theta, monotone_path, p, draw_noise(theta.detach(), p, generator))[0, 0, -1]
        (gradient,) = torch.autograd.grad(weight, theta)
        rows.append({"seed": seed, "step": step, "weight": weight.item(), "gradient_norm": gradient.norm().item()})
        theta = theta + STEP * gradient
    put(metrics, "edge_weight", "before", key, rows[0]["weight"])
    put(metrics, "edge_weight", "after", key, rows[-1]["weight"])
    put(metrics, "perturbed_gradient_norm", "path", key, rows[0]["gradient_norm"])
    return rows


def main() -> None:
    """Measure all and write."""
    parser = argparse.ArgumentParser(description="Measure the identities, limits and errors that the paper proves.")
    parser.add_argument("--preset", required=True, help="block of papers/perturbed_optimizers/params.yaml")
    preset = parser.parse_args().preset
    paper_settings.load(preset)  # only so that a wrong name is refused
    # Small tensors: more threads only wait for each other.
    torch.set_num_threads(1)
    origin = provenance.begin("theory", preset, None, Path(__file__))
    samples = 5_000 if preset == "smoke" else 100_000
    metrics: Metrics = {}
    curves: dict[str, Rows] = {"error_vs_samples": [], "variance": [], "edge_weight": []}
    measure_exact(metrics)
    for seed in SEEDS:
        measure_identities(seed, samples, metrics)
        curves["error_vs_samples"] += measure_convergence(seed, samples, metrics)
        curves["variance"] += measure_variance(seed, samples, metrics)
        curves["edge_weight"] += measure_ascent(seed, samples // 100, metrics)
        measure_estimation(seed, samples // 25, samples // 100, metrics)
    curves["bias_vs_epsilon"] = bias_rows(samples)
    curves["segment"] = segment_rows(samples // 25)
    for row in curves["bias_vs_epsilon"]:
        for arm in ("argmax", "ranking", "path"):
            put(metrics, f"solution_bias_eps{named(row['epsilon'])}", arm, "exact", row[arm])
    folder = runs(PAPER, preset) / "theory"
    for name, rows in curves.items():
        write_rows(folder / f"{name}.csv", rows)
    write_metrics(folder / "metrics.json", metrics)
    origin.finish(runs(PAPER, preset) / "provenance" / "theory.json")


if __name__ == "__main__":
    errors.run(main)
