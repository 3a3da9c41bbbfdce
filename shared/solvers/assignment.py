"""Linear assignment: the best vertex of the Birkhoff polytope of doubly stochastic matrices."""

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor


def assignment(theta: Tensor) -> Tensor:
    """The permutation matrix `y` with the largest `<theta, y>` for each matrix of scores, both (..., n, n).

    Row i is assigned to the column j with `y[..., i, j] = 1`. The instances are solved one by one on the CPU by scipy's
    shortest augmenting paths (Crouse, On implementing 2D rectangular assignment algorithms, 2016), O(n^3) each: these
    paths differ from instance to instance, so a batch has little to share. Dtype and device are those of the scores;
    the result has no gradient. Of several maximisers scipy chooses one.

    Raises:
        ValueError: the matrices are not square or empty, hold no floating-point numbers, or one that is not finite.
    """
    n = theta.shape[-1] if theta.ndim else 0
    if theta.ndim < 2 or theta.shape[-2] != n or n == 0:
        raise ValueError(f"scores of an assignment have the shape (..., n, n) with n >= 1, got {tuple(theta.shape)}")
    if not theta.is_floating_point():
        raise ValueError(f"scores are floating-point numbers, got {theta.dtype}")
    # scipy computes in float64, and numpy knows no bfloat16.
    scores = theta.detach().to("cpu", torch.float64)
    bad = ~scores.isfinite()
    if bad.any():
        where = bad.nonzero()[0].tolist()
        raise ValueError(f"the score at {where} is {scores[tuple(where)].item()}: scores of an assignment are finite")
    instances = scores.reshape(-1, n, n).numpy()
    columns = np.empty((len(instances), n, 1), dtype=np.int64)
    for instance, chosen in zip(instances, columns, strict=True):
        chosen[:, 0] = linear_sum_assignment(instance, maximize=True)[1]
    index = torch.from_numpy(columns).reshape(*theta.shape[:-1], 1).to(theta.device)
    return torch.zeros_like(theta).scatter_(-1, index, 1)
