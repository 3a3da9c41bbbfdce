"""A penalty on the largest singular value of every convolution (NVAE, section 3.2; Yoshida & Miyato, 2017)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.layers import effective_weight


class SpectralPenalty(nn.Module):
    """Sum over convolutions of `sigma_max(W)`, W the weight actually applied, reshaped to (C_out, C_in/groups * k * k).

    `sigma = |W v|` with vectors from power iteration, kept from step to step (warm start) and saved with the state; its
    gradient is `u v'`. Weights of equal shape are stacked and iterated in one batched product. The estimate
    never exceeds the true singular value. It is the norm of the reshaped kernel, not of the convolution operator.

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
        self.started = False  # the first, longer call is over
        generator = torch.Generator().manual_seed(0)
        for i, (rows, _) in enumerate(groups):
            u = torch.randn(len(self._groups[i]), rows, 1, generator=generator)
            self.register_buffer(f"u{i}", F.normalize(u, dim=1))

    def get_extra_state(self) -> Tensor:
        """`started`, as part of the state dict."""
        return torch.tensor(self.started)

    def set_extra_state(self, state: Tensor) -> None:
        """Take over what `get_extra_state` gave."""
        self.started = bool(state)

    def left_vectors(self) -> dict[nn.Conv2d, Tensor]:
        """The present estimate of the left singular vector (rows,) of each convolution."""
        found: dict[nn.Conv2d, Tensor] = {}
        for i, convs in enumerate(self._groups):
            found |= zip(convs, getattr(self, f"u{i}").squeeze(2), strict=True)
        return found

    def forward(self) -> Tensor:
        """The penalty, a scalar with gradient in the weights; moves the stored vectors."""
        iterations = self.iterations if self.started else self.first_iterations
        self.started = True
        total = torch.zeros((), device=self.u0.device if self._groups else None)  # type: ignore[arg-type]
        for i, convs in enumerate(self._groups):
            w = torch.stack([effective_weight(conv).float().flatten(1) for conv in convs])
            total = total + self._largest(w, getattr(self, f"u{i}"), iterations).sum()
        return total

    def _largest(self, w: Tensor, u: Tensor, iterations: int) -> Tensor:
        """Estimates (n,) of the largest singular values of the stacked matrices `w` (n, rows, columns); moves `u`."""
        with torch.no_grad():
            # v = W'u, u = Wv, several times over, is u = (WW')u: on the small Gram matrix all but the last are cheap.
            turned, gram = u, torch.bmm(w, w.transpose(1, 2))
            for _ in range(iterations - 1):
                turned = F.normalize(torch.bmm(gram, turned), dim=1, eps=1e-6)
            # eps 1e-3 as in the official code: vanishing layers must not produce NaN directions.
            v = F.normalize(torch.bmm(w.transpose(1, 2), turned), dim=1, eps=1e-3)
        wv = torch.bmm(w, v)
        u.copy_(F.normalize(wv.detach(), dim=1, eps=1e-3))
        sigma: Tensor = torch.linalg.vector_norm(wv, dim=(1, 2))
        return sigma
