"""All parameters of a model in one buffer, and all gradients in another."""

import torch
from torch import nn


def flatten(model: nn.Module) -> nn.Parameter:
    """Move the parameters of `model` into one vector; each parameter and its gradient become views of it.

    An optimiser that treats every number alike (Adam, Adamax, SGD) then needs one pass over one vector instead of one
    over each of hundreds of small tensors, as do the norm of the gradient and its mean over processes. Call it when the
    model is on its device; `zero_grad(set_to_none=True)` or `model.to(...)` afterwards would cut the views.

    Returns:
        The vector, to be given to the optimiser; its `grad` is the vector of gradients.

    Raises:
        ValueError: the parameters differ in dtype or device.
    """
    parameters = list(model.parameters())
    if len({(p.dtype, p.device) for p in parameters}) > 1:
        raise ValueError("parameters of several dtypes or devices cannot share one buffer")
    flat = nn.Parameter(parameters[0].new_empty(sum(p.numel() for p in parameters)))
    flat.grad = torch.zeros_like(flat)
    start = 0
    for p in parameters:
        # The strides are kept, so that channels-last weights stay channels-last.
        view, grad = (whole.as_strided(p.shape, p.stride(), start) for whole in (flat.data, flat.grad))
        view.copy_(p.data)
        p.data, p.grad = view, grad
        start += p.numel()
    return flat
