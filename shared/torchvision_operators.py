"""Let torchvision be imported beside a CPU build of torch; import this module before torchvision and before its users.

The published torchvision wheel is built for CUDA. Its C++ library cannot be loaded beside a CPU build of torch, so the
two operators that torchvision's Python side describes at import, `nms` and `qnms`, do not exist and the import stops.
On such a machine this module declares their signatures, without an implementation: grids, transforms and models work,
and a call of `torchvision.ops.nms` is refused. Where the C++ library loads (a CUDA machine, or two builds that
match), nothing is declared.
"""

import importlib.util
from pathlib import Path

import torch

_MISSING_WITHOUT_LIBRARY = ("nms", "qnms")
_SIGNATURE = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"

# The declarations live as long as this object does.
_declarations: torch.library.Library | None = None


def declared_here() -> bool:
    """True where this module had to declare the operators, False where torchvision's own library brings them."""
    return _declarations is not None


def _library_loads() -> bool:
    """Load torchvision's C++ library; False if it is not there or its own libraries (those of CUDA) are not."""
    found = importlib.util.find_spec("torchvision")
    if found is None or found.origin is None:
        return False
    for library in sorted(Path(found.origin).parent.glob("_C*.so")):
        try:
            torch.ops.load_library(str(library))
        except OSError:
            continue
        return True
    return False


def _operators_exist() -> bool:
    """Whether torch knows torchvision's operators, whoever declared them."""
    return all(hasattr(torch.ops.torchvision, name) for name in _MISSING_WITHOUT_LIBRARY)


def ensure() -> None:
    """Make torchvision importable; a second call changes nothing."""
    global _declarations
    if _operators_exist() or _library_loads():
        return
    _declarations = torch.library.Library("torchvision", "FRAGMENT")
    for name in _MISSING_WITHOUT_LIBRARY:
        _declarations.define(name + _SIGNATURE)


ensure()
