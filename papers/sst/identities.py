"""What holds exactly for stochastic softmax tricks, measured (Paulus et al., 2020, sections 3 to 5).

Limits, sums over all vertices, closed-form derivatives, and optimality. Each function gives a number or a few.
"""

import torch
from torch import Tensor

from papers.sst import chains, spanning_trees, subsets
from papers.sst.structures import Structure, gibbs_mean
from papers.sst.utilities import sample

__all__ = [
    "COLD",
    "K4",
    "best_tree_example",
    "draw_utilities",
    "exactness_error",
    "gumbel_softmax_difference",
    "limit_curve",
    "limit_distances",
    "optimality_gap",
    "sum_error",
    "trusted",
    "vjp_error",
]

#: Utilities of the edges 01, 02, 03, 12, 13, 23, the example of a tree on four nodes.
K4 = torch.tensor([0.5, -1.0, 0.3, 2.0, 0.0, -0.7], dtype=torch.float64)
#: Temperatures of identities: at lower ones few marginals are neither 0 nor 1.
WARM = (0.3, 1.0, 3.0)
#: Temperatures of optimality: at lower ones some 1 - x are nothing but rounding, and so is the entropy's slope.
WARMEST = (1.0, 3.0)
#: Temperatures at which the distance to the best vertex is told.
COLD = (1.0, 0.3, 0.1, 0.05, 0.02)
#: By so much, in the unit of the utilities, the best vertex leads wherever the distance is told.
LEAD = 0.5


def draw_utilities(structure: Structure, count: int, generator: torch.Generator) -> Tensor:
    """Gumbel utilities (count, n) with standard normal parameters, float64."""
    theta = torch.randn(count, structure.vertices.shape[1], generator=generator, dtype=torch.float64)
    return sample(theta, "gumbel", generator=generator)


def trusted(structure: Structure, utilities: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Relaxed points (B', n) of the instances that are not refused as singular, and which (B,) these are.

    A batch with a refused instance is halved until it is found.
    """
    try:
        return structure.relaxation(utilities, temperature), torch.ones(len(utilities), dtype=torch.bool)
    except ValueError:
        if len(utilities) == 1:
            return utilities[:0], torch.zeros(1, dtype=torch.bool)
    middle = len(utilities) // 2
    parts = [trusted(structure, half, temperature) for half in (utilities[:middle], utilities[middle:])]
    points, accepted = zip(*parts, strict=True)
    return torch.cat(points), torch.cat(accepted)


def limit_curve(structure: Structure, utilities: Tensor, temperature: float) -> tuple[float, float]:
    """Mean over instances (B, n) of the largest |X_t - X| in a coordinate, and the percentage that was refused.

    The instances are random: near ties, which no low temperature resolves, count.
    """
    points, accepted = trusted(structure, utilities, temperature)
    distances = (points - structure.solver(utilities[accepted])).abs().amax(-1)
    return distances.mean().item() if len(distances) else 0.0, 100 * (1 - accepted.double().mean().item())


def limit_distances(structure: Structure, utilities: Tensor) -> dict[float, float]:
    """Temperature -> the largest |X_t - X| over the instances whose best vertex leads by `LEAD`, for all of `COLD`.

    Only instances that no temperature refuses count, so that the same ones are compared.
    """
    best = (utilities @ structure.vertices.T).topk(2, -1).values
    clear = utilities[best[:, 0] - best[:, 1] >= LEAD]
    for temperature in sorted(COLD):
        clear = clear[trusted(structure, clear, temperature)[1]]
    hard = structure.solver(clear)
    return {t: (structure.relaxation(clear, t) - hard).abs().max().item() for t in COLD}


def best_tree_example(temperature: float) -> Tensor:
    """The relaxed tree (6) of the utilities `K4`, to be compared with the tree 01, 03, 12."""
    return spanning_trees.marginals(K4, temperature)


def exactness_error(structure: Structure, utilities: Tensor) -> float:
    """The largest |X_t - mean of the Gibbs law by listing all vertices| for exponential-family relaxations."""
    errors = []
    for t in WARM:
        points, accepted = trusted(structure, utilities, t)
        errors.append((points - gibbs_mean(utilities[accepted], structure.vertices, t)).abs().max().item())
    return max(errors)


def sum_error(structure: Structure, utilities: Tensor) -> float:
    """How far relaxed points are from the sums of vertices: n - 1 edges, k items, one parent, rows and columns of 1."""
    expected = structure.sums @ structure.vertices[0]
    return max((trusted(structure, utilities, t)[0] @ structure.sums.T - expected).abs().max().item() for t in WARM)


def vjp_error(structure: Structure, utilities: Tensor, generator: torch.Generator) -> float:
    """The largest error of t times the closed-form vector-Jacobian product with a random vector.

    Against the covariance over all vertices for the exponential family, else against central differences, which are
    right to about 1e-7, along as many directions as there are utilities. A kink between the two ends of a difference,
    as sparse projections have, would be no error of the derivative: instances with one are left out.
    """
    worst, h = 0.0, 1e-5
    for t in WARM:
        u = utilities[trusted(structure, utilities, t)[1]].clone().requires_grad_()
        v = torch.randn(u.shape, generator=generator, dtype=u.dtype)
        (product,) = torch.autograd.grad((structure.relaxation(u, t) * v).sum(), u)
        u = u.detach()
        if "gibbs" in structure.entropies:
            expected = _covariance_product(structure.vertices, u, v, t) / t
        else:
            steps = h * t * torch.eye(u.shape[1], dtype=u.dtype)
            ends = [structure.relaxation(u.unsqueeze(1) + sign * steps, t) for sign in (1, -1)]
            expected = ((ends[0] - ends[1]) * v.unsqueeze(1)).sum(-1) / (2 * h * t)
            smooth = (_faces(ends[0]) == _faces(ends[1])).all((-1, -2))
            product, expected = product[smooth], expected[smooth]
        worst = max(worst, t * (product - expected).abs().max().item())
    return worst


def _faces(points: Tensor) -> Tensor:
    """-1 where a coordinate is 0, 1 where it is 1, else 0."""
    return (points == 1).int() - (points == 0).int()


def _covariance_product(vertices: Tensor, u: Tensor, v: Tensor, t: float) -> Tensor:
    """Cov_{p(x) ~ exp(<u, x> / t)}(x, <v, x>) by listing all vertices, (B, n)."""
    p = torch.softmax(u @ vertices.T / t, -1)
    along = v @ vertices.T
    return (p * (along - (p * along).sum(-1, keepdim=True))) @ vertices


def optimality_gap(structure: Structure, utilities: Tensor, entropy: str) -> float:
    """How much better than the relaxed point x another point of the polytope can be, at most, over t.

    With g = u / t - grad f(x) concavity bounds it by the largest <g, v - x> over the vertices v, which is 0 exactly at
    the maximiser (Frank and Wolfe's gap).

    Args:
        entropy: `euclidean`, `categorical` or `binary`.
    """
    worst = 0.0
    for t in WARMEST:
        x, accepted = trusted(structure, utilities, t)
        slopes = {
            "euclidean": lambda x: x,
            "categorical": lambda x: x.log(),  # plus 1, which is the same for all points of a constant sum
            "binary": lambda x: x.logit(),
        }[entropy](x)
        g = utilities[accepted] / t - slopes
        worst = max(worst, ((g @ structure.vertices.T).amax(-1) - (g * x).sum(-1)).abs().max().item())
    return worst


def gumbel_softmax_difference(theta: Tensor, generator: torch.Generator) -> dict[str, float]:
    """The largest difference between relaxations of sets that are one-hot vectors and softmax((theta + G) / t).

    Subsets of 1 item by three of the general constructions; a row of items without scores on neighbours; and spanning
    trees of a triangle, where one edge of three is left out, with the utilities -(theta + G).

    Args:
        theta: (B, n) with n >= 3, float64.
    """
    u = sample(theta, "gumbel", generator=generator)
    found: dict[str, float] = {}
    for t in WARM:
        expected = torch.softmax(u / t, -1)
        row = torch.cat([u, torch.zeros_like(u[:, 1:])], -1)
        points = {
            "k_subsets_categorical": subsets.k_subset_categorical(u, 1, t) - expected,
            "k_subsets_marginals": chains.k_subset_marginals(u, 1, t) - expected,
            "correlated_k_subsets": chains.correlated_marginals(row, 1, t)[:, : u.shape[1]] - expected,
            "spanning_trees": 1 - spanning_trees.marginals(-u[:, :3], t) - torch.softmax(u[:, :3] / t, -1),
        }
        for name, difference in points.items():
            found[name] = max(found.get(name, 0.0), difference.abs().max().item())
    return found
