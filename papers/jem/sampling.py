"""Images drawn from a trained network by long chains, and how such chains behave (Grathwohl et al., 2020, section 5.1).

A round visits every slot of a fresh buffer once: the chain of the slot moves on by eta steps, or starts again from
noise with probability rho before it moves, as in training. Images are (N, C, H, W) in [-1, 1], or near it, since
chains are not clamped.
"""

import torch
from torch import Tensor, nn

from papers.jem.data import Data, scale
from papers.jem.energy import log_marginal
from papers.jem.evaluation import Found, Rows, grey_levels, logits_of
from papers.jem.sgld import Langevin, autocorrelation, largest_curvature, run_chains, trace_chains

#: rho, as in training.
REINIT = 0.05
#: Chains that are moved together.
_BATCH = 100
#: Steps of the chains that are traced.
_COURSE = 120
#: In steps.
_LAGS = (1, 10, 100)


def ages(count: int, rounds: int, reinit: float, generator: torch.Generator) -> Tensor:
    """Rounds since the last fresh start of each of `count` slots after `rounds` rounds, int64, from 1 to `rounds`.

    A slot forgets everything at a fresh start, so its age min(G, rounds), with G geometric with mean 1 / reinit, is all
    that counts: the chains need only be run for their age, some 5 times less than 100 rounds at rho = 0.05.

    Raises:
        ValueError: no rounds, or no probability.
    """
    if rounds < 1 or not 0 <= reinit <= 1:
        raise ValueError(f"{rounds} rounds with fresh starts at a rate of {reinit} draw no samples")
    restarted = torch.rand(rounds - 1, count, generator=generator, device=generator.device) < reinit
    # The k-th row from the last round backwards: the first True ends the age.
    return 1 + (~restarted).long().cumprod(0).sum(0)


def draw(
    network: nn.Module,
    age: Tensor,
    shape: tuple[int, ...],
    langevin: Langevin,
    generator: torch.Generator,
    *,
    labels: Tensor | None = None,
    precision: str = "float32",
) -> Tensor:
    """Final states (N, *shape) of chains from uniform noise, each of `age` (N,) times `langevin.steps` steps.

    Args:
        labels: int64 (N,), the classes y whose logits f[y] are climbed; log p(x) by default.
        precision: of the network, see `run_chains`.
    """
    final = torch.empty((len(age), *shape), device=age.device)
    oldest_first = age.argsort(descending=True, stable=True)
    for chosen in oldest_first.split(_BATCH):
        x = 2 * torch.rand(len(chosen), *shape, generator=generator, device=age.device) - 1
        for visit in range(int(age[chosen].max())):
            n = int((age[chosen] > visit).sum())  # those still moving are the first ones
            y = None if labels is None else labels[chosen[:n]]
            x[:n] = run_chains(network, x[:n], langevin, labels=y, generator=generator, precision=precision)
        final[chosen] = x
    return final


def nearest_distance(x: Tensor, others: Tensor, *, same: bool = False) -> Tensor:
    """Euclidean distance (N,) of each x (N, ...) to the nearest of `others` (M, ...), both on the scale [-1, 1].

    Pixels uint8 are scaled; values outside [-1, 1] are cut. With `same`, `others` are `x` and an image is not its own
    neighbour.

    Raises:
        ValueError: there is nothing to compare with.
    """
    if len(others) <= same:
        raise ValueError("there is no other image to measure the distance to")
    mine = _flat(x)
    least = torch.full((len(x),), torch.inf, device=x.device)
    for start in range(0, len(others), 5_000):
        part = _flat(others[start : start + 5_000])
        distances = torch.cdist(mine, part)
        if same:
            place = torch.arange(start, start + len(part), device=x.device)
            distances[place, place - start] = torch.inf
        least = torch.minimum(least, distances.amin(1))
    return least


def _flat(x: Tensor) -> Tensor:
    return (scale(x) if x.dtype == torch.uint8 else x.clamp(-1, 1)).flatten(1)


def label_entropy_nats(labels: Tensor, classes: int) -> float:
    """Entropy of the shares of the classes among labels (N,): log(classes) at best, 0 for one class only."""
    share = torch.bincount(labels, minlength=classes).double() / len(labels)
    return float(-(share * share.clamp(min=1e-300).log()).sum())


def samples(
    network: nn.Module,
    data: Data,
    *,
    count: int,
    rounds: int,
    langevin: Langevin,
    classes: int = 10,
    judge: nn.Module | None = None,
    precision: str = "float32",
    seed: int = 0,
) -> tuple[Found, Tensor]:
    """Chains on log p(x): which classes they end in, how far they are from images and from each other.

    Args:
        count: samples.
        rounds: visits of each slot.
        judge: a network that was not trained on samples, for a second opinion on their classes.

    Returns:
        Numbers `samples_...` and, of as many test images, `test_nearest_...`; the table `samples`, a row an image:
        `age` in rounds, `label`, `confidence_percent`, `log_density_nats`; the picture `samples`, 100 of all
        ages, the oldest first. And the samples (count, C, H, W), the oldest first.
    """
    shape = tuple(data.test.shape[1:])
    generator = torch.Generator(data.test.device).manual_seed(2 * seed)
    age = ages(count, rounds, REINIT, generator).sort(descending=True).values
    x = draw(network, age, shape, langevin, generator, precision=precision)
    real = data.test[:count]
    numbers = {
        "samples_nearest_train": float(nearest_distance(x, data.train).double().mean()),
        "samples_nearest_sample": float(nearest_distance(x, x, same=True).double().mean()),
        "test_nearest_train": float(nearest_distance(real, data.train).double().mean()),
        "test_nearest_test": float(nearest_distance(real, real, same=True).double().mean()),
    }
    logits = logits_of(network, x)
    confidence, label = logits.softmax(1).max(1)
    seen_by = {"": label} | ({} if judge is None else {"_judged": logits_of(judge, x).argmax(1)})
    for name, seen in seen_by.items():
        share = torch.bincount(seen, minlength=classes).double() / count
        numbers[f"samples{name}_label_entropy_nats"] = label_entropy_nats(seen, classes)
        numbers[f"samples{name}_least_share_percent"] = 100 * float(share.min())
        numbers[f"samples{name}_classes"] = float((share > 0).sum())
    numbers["samples_confidence_percent"] = 100 * float(confidence.double().mean())
    columns = (age.tolist(), label.tolist(), (100 * confidence).tolist(), log_marginal(logits).tolist())
    rows: Rows = [
        {"age": a, "label": y, "confidence_percent": c, "log_density_nats": v}
        for a, y, c, v in zip(*columns, strict=True)
    ]
    shown = torch.linspace(0, count - 1, min(100, count), device=x.device).round().long()
    return Found(numbers, {"samples": rows}, {"samples": grey_levels(x[shown])}), x


def conditional_samples(
    network: nn.Module,
    shape: tuple[int, ...],
    *,
    per_class: int,
    rounds: int,
    langevin: Langevin,
    classes: int = 10,
    judge: nn.Module | None = None,
    precision: str = "float32",
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> Found:
    """Chains on f[y], samples of p(x | y): do they look like their class, to the network and to the judge?

    Returns:
        Numbers `conditional_own_percent` and `conditional_judged_percent`; the picture `conditional`: of each class in
        turn the first 10, the oldest first.
    """
    generator = torch.Generator(device).manual_seed(2 * seed + 1)
    labels = torch.arange(classes, device=device).repeat_interleave(per_class)
    age = ages(len(labels), rounds, REINIT, generator)
    x = draw(network, age, shape, langevin, generator, labels=labels, precision=precision)
    judges = {"own": network} | ({} if judge is None else {"judged": judge})
    agreed = {name: (logits_of(each, x).argmax(1) == labels).double().mean() for name, each in judges.items()}
    first = (torch.arange(per_class, device=device) < 10).repeat(classes).nonzero()[:, 0]
    shown = first[(labels[first] * (rounds + 1) - age[first]).argsort(stable=True)]
    numbers = {f"conditional_{name}_percent": 100 * float(share) for name, share in agreed.items()}
    return Found(numbers, {}, {"conditional": grey_levels(x[shown])})


def chain_diagnostics(
    network: nn.Module, data: Data, x: Tensor, langevin: Langevin, *, data_noise: float, count: int = 50, seed: int = 0
) -> Found:
    """Are the chains at rest, stable and mixing? Measured at `x` (N, C, H, W) of `samples`, in float32.

    Args:
        langevin: the chains of training; how they move counts, not how long they are.
        data_noise: standard deviation of the noise on test images, as in training.
        count: samples, the oldest, and test images, whose curvature is measured, and chains that are traced.

    Returns:
        Numbers: `log_density_gap_nats`, mean LSE of test images with the noise of training less that of the samples
        (near 0 if the chains have settled); `curvature_<set>_mean` and `_max`, largest eigenvalue of the Hessian of
        the energy times the step size (chains move away where it is above 2); `autocorrelation_lag<k>` of settled
        chains. Tables: `autocorrelation` by `lag`, and `course`, mean `log_density_nats` and `gradient_norm` of chains
        from noise by `step`, beside the level `test_log_density_nats`.
    """
    generator = torch.Generator(x.device).manual_seed(2 * seed)
    real = scale(data.test[: len(x)])
    real += data_noise * torch.randn(real.shape, generator=generator, device=x.device)
    level = float(log_marginal(logits_of(network, real)).double().mean())
    numbers = {"log_density_gap_nats": level - float(log_marginal(logits_of(network, x)).double().mean())}
    for name, images in {"test": real, "samples": x}.items():
        curvature = largest_curvature(network, images[:count], iterations=15, generator=generator)
        curvature = langevin.step_size * curvature.double()
        numbers |= {f"curvature_{name}_mean": float(curvature.mean()), f"curvature_{name}_max": float(curvature.max())}
    longer = Langevin(_COURSE, langevin.step_size, langevin.noise, langevin.gradient_clamp, langevin.sample_clamp)
    settled = trace_chains(network, x[:count], longer, generator=generator, keep_states=True)
    if settled.states is None:
        raise AssertionError("the states were asked for")
    correlation = autocorrelation(settled.states, _LAGS[-1]).tolist()
    numbers |= {f"autocorrelation_lag{lag}": correlation[lag] for lag in _LAGS}
    noise = 2 * torch.rand(x[:count].shape, generator=generator, device=x.device) - 1
    trace = trace_chains(network, noise, longer, generator=generator)
    course = zip(trace.log_density.mean(1).tolist(), trace.gradient_norm.mean(1).tolist(), strict=True)
    rows: Rows = [
        {"step": k, "log_density_nats": value, "gradient_norm": slope, "test_log_density_nats": level}
        for k, (value, slope) in enumerate(course)
    ]
    lags: Rows = [{"lag": lag, "correlation": value} for lag, value in enumerate(correlation)]
    return Found(numbers, {"course": rows, "autocorrelation": lags})
