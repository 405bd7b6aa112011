"""Makes torchvision's model definitions importable beside a torch build that its C++ operators do not match.

lpips and diffusers import torchvision, but need only its network definitions. A torchvision wheel built for
CUDA fails beside the CPU build of torch: its library cannot load, so the two operators whose shapes it
registers at import do not exist. Declaring them first is enough. With a matching pair nothing is done.
Every import of torchvision, lpips or diffusers in this project goes through `torchvision_ready()`.
"""

import functools
import sys

import torch


@functools.cache
def torchvision_ready() -> None:
    """After this, `import torchvision` works; its box operators raise when called (nothing here calls them)."""
    try:
        import torchvision  # noqa: F401
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        declare_operators()
        import torchvision  # noqa: F401


def plain_float32() -> None:
    """Convolutions of NVIDIA GPUs in plain float32 from now on, in this process; torch's own choice is TensorFloat-32."""
    torch.backends.cudnn.allow_tf32 = False


@functools.cache
def declare_operators() -> torch.library.Library:
    """The operators that torchvision gives shapes to at import; the library lives as long as the process."""
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library
