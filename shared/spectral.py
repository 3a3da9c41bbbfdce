"""A penalty on the largest singular value of every convolution (NVAE, section 3.2; Yoshida & Miyato, 2017)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.layers import effective_weight


class SpectralPenalty(nn.Module):
    """Sum over convolutions of `sigma_max(W)`, W the weight actually applied, reshaped to (C_out, C_in/groups * k * k).

    `sigma = u' W v` with left and right vectors from power iteration, kept from step to step (warm start) and saved
    with the state. Weights of equal shape are stacked and iterated in one batched product. The estimate never exceeds
    the true singular value. It is the norm of the reshaped kernel, not of the convolution operator.

    Args:
        convolutions: the layers to penalise; they are not registered again as children.
        iterations: power iterations a call (NVAE: 4).
        first_iterations: power iterations in the first call (NVAE: 40).
    """

    def __init__(self, convolutions: Sequence[nn.Conv2d], iterations: int = 4, first_iterations: int = 40) -> None:
        super().__init__()
        groups: dict[tuple[int, int], list[nn.Conv2d]] = {}
        for conv in convolutions:
            groups.setdefault((conv.weight.shape[0], conv.weight[0].numel()), []).append(conv)
        self._groups = tuple(tuple(convs) for convs in groups.values())  # a tuple hides them from nn.Module
        self.iterations = iterations
        self.first_iterations = first_iterations
        self.register_buffer("started", torch.zeros((), dtype=torch.bool))
        generator = torch.Generator().manual_seed(0)
        for i, (rows, columns) in enumerate(groups):
            n = len(self._groups[i])
            u, v = (torch.randn(n, size, 1, generator=generator) for size in (rows, columns))
            self.register_buffer(f"u{i}", F.normalize(u, dim=1))
            self.register_buffer(f"v{i}", F.normalize(v, dim=1))

    def forward(self) -> Tensor:
        """The penalty, a scalar with gradient in the weights; moves the stored vectors."""
        iterations = self.iterations if bool(self.started) else self.first_iterations
        total = torch.zeros((), device=self.started.device)  # type: ignore[arg-type]
        for i, convs in enumerate(self._groups):
            w = torch.stack([effective_weight(conv).float().flatten(1) for conv in convs])
            total = total + self._largest(w, i, iterations).sum()
        self.started.fill_(True)  # type: ignore[operator]
        return total

    def _largest(self, w: Tensor, i: int, iterations: int) -> Tensor:
        """Estimates (n,) of the largest singular values of the stacked matrices `w` (n, rows, columns)."""
        u, v = getattr(self, f"u{i}"), getattr(self, f"v{i}")
        with torch.no_grad():
            # v = W'u, u = Wv, several times over, is u = (WW')u: on the small Gram matrix all but the last are cheap.
            # eps 1e-3 as in the official code, squared for WW': vanishing layers must not produce NaN directions.
            gram = torch.bmm(w, w.transpose(1, 2)) if iterations > 1 else w
            for _ in range(iterations - 1):
                u.copy_(F.normalize(torch.bmm(gram, u), dim=1, eps=1e-6))
            v.copy_(F.normalize(torch.bmm(w.transpose(1, 2), u), dim=1, eps=1e-3))
            u.copy_(F.normalize(torch.bmm(w, v), dim=1, eps=1e-3))
        # Clones: the stored vectors move in the next call, the graph must keep those of this one.
        return torch.bmm(u.clone().transpose(1, 2), torch.bmm(w, v.clone())).flatten()
