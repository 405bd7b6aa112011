"""Feature networks: 8-bit images in, one vector each out. Whatever a number depends on stands in `describe`.

Weights come from the weights folder or from a file that the user names, are checked by hash, and are never fetched here.
Only Inception's features make an "FID"; others give their distances their own name. Shapes: B batch, D features.
"""

import hashlib
import io
import os
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from infd import fetching, storage, weights
from infd.compat import torchvision_ready
from infd.config import require
from infd.errors import WeightsError
from infd.evaluation import efficientnet
from infd.losses.perceptual import Lpips

INCEPTION = "inception-v3-compat"
STATES = {INCEPTION: "inception-fid", "efficientnet-lite0": "efficientnet-lite0", "lpips-vgg": "lpips-vgg",
          "lpips-alex": "lpips-alex"}
"""Feature network -> the name of its weights in `infd.weights`."""
LPIPS_DIMS = {"lpips-vgg": 512, "lpips-alex": 256}


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """Which features."""

    name: Literal["inception-v3-compat", "efficientnet-lite0", "lpips-vgg", "lpips-alex", "torchscript"] = INCEPTION
    """inception-v3-compat: FID's own, as torch-fidelity computes it; torchscript: a network in the file of `weights`."""
    weights: str = ""
    """Folder or bucket prefix of the weights, or Inception's .pth file as downloaded; empty: the usual weights folder."""
    label: str = ""
    """torchscript: the name that metrics carry, as in frechet[label]."""
    sha256: str = ""
    """torchscript: of the file, all 64 digits."""
    input_px: int = 224
    """torchscript: side of its input."""
    resize: Literal["bilinear", "bicubic"] = "bicubic"
    """torchscript: filter that brings images to its input, antialiased."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """torchscript: taken off RGB in [0, 1]; ImageNet's."""
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    """torchscript: RGB is divided by it; ImageNet's."""

    def __post_init__(self) -> None:
        if self.name == "torchscript":
            require(bool(self.weights), "network.weights", self.weights, "torchscript needs the address of the file")
            require(len(self.sha256) == 64, "network.sha256", self.sha256, "torchscript needs the file's whole sha256")
            plain = self.label.replace("-", "").replace("_", "").replace(".", "").isalnum()
            require(plain and "fid" not in self.label.lower() and "inception" not in self.label.lower(), "network.label",
                    self.label, "must be letters, digits, - _ . alone, and not pass for FID's network")
            require(self.input_px >= 16, "network.input_px", self.input_px, "must be at least 16")
            require(all(value > 0 for value in self.std), "network.std", self.std, "must be above 0")


@dataclass(frozen=True, kw_only=True)
class FeatureNetwork:
    """A network ready to use.

    Law: an image's features depend on the image alone, but for rounding that varies with the size of the batch.
    """

    name: str
    """As metrics carry it."""
    sha256: str
    """Of its weights: the tensors in safetensors form, sorted by name; of a TorchScript file, its bytes."""
    input: str
    """In words: side, filter, range."""
    dim: int
    trunk: Callable[[Tensor], Tensor]
    """uint8 (B, 3, H, W) on the device -> (B, D)."""
    device: str = "cpu"

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """uint8 (B, H, W, 3) -> float32 (B, D)."""
        if images.ndim != 4 or images.shape[3] != 3 or images.dtype != np.uint8:
            raise ValueError(f"images of {images.dtype} {images.shape}: expected uint8 (B, H, W, 3)")
        batch = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))).to(self.device)
        with torch.no_grad():
            found = self.trunk(batch)
        if found.shape != (len(images), self.dim):
            raise WeightsError(f"network {self.name}: gave {tuple(found.shape)} for {len(images)} images; expected "
                               f"({len(images)}, {self.dim}); name another network or file")
        return found.float().cpu().numpy()

    def describe(self) -> dict[str, object]:
        """Name, weights' sha256, what becomes of the input, and D."""
        return {"name": self.name, "weights_sha256": self.sha256, "input": self.input, "features": self.dim}


def open_network(config: NetworkConfig, *, device: str = "cpu") -> FeatureNetwork:
    """The network of a config. Raises WeightsError: absent (the message says where it is to be had), or damaged."""
    if config.name == "torchscript":
        return torchscript(config, device=device)
    state = load_state(config)
    makers = {INCEPTION: inception, "efficientnet-lite0": efficientnet_lite0}
    return placed(makers[config.name](state) if config.name in makers else lpips_trunk(config.name, state), device)


def placed(network: FeatureNetwork, device: str) -> FeatureNetwork:
    """The network on a device; on CPUs in channels last: 1.5 times as fast, its features within 1e-5 of the plain layout's."""
    if isinstance(network.trunk, nn.Module):
        network.trunk.to(device)
        if device == "cpu":
            network.trunk.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    return replace(network, device=device)


# ---------------------------------------------------------------- weights


def load_state(config: NetworkConfig) -> dict[str, Tensor]:
    """The tensors of a network, checked by hash; from a .pth or .pt file as its makers offer it, or the weights folder."""
    chosen = weights.network(STATES[config.name])
    if config.weights.endswith((".pth", ".pt")):
        return official_state(chosen, config.weights)
    uri = weights.weights_uri(chosen.name, config.weights or None)
    if not storage.exists(uri):
        raise WeightsError(f"weights {chosen.name}: no file {uri}; expected {offered(chosen)}. {fetching.by_hand(chosen)}")
    return weights.load_weights(chosen.name, config.weights or None)


def official_state(chosen: weights.Network, uri: str) -> dict[str, Tensor]:
    """From the file that its makers offer. Raises WeightsError: no such file, or another hash."""
    official = next((one for one in chosen.sources if isinstance(one, weights.OfficialFile)), None)
    if official is None:
        raise WeightsError(f"weights {chosen.name}: {uri} was named; its makers offer no file of that kind; name the folder "
                           f"of {chosen.name}.safetensors. {fetching.by_hand(chosen)}")
    if not storage.exists(uri):
        raise WeightsError(f"weights {chosen.name}: no file {uri}; expected {offered(chosen)}. {fetching.by_hand(chosen)}")
    data = storage.read_bytes(uri)
    digest = hashlib.sha256(data).hexdigest()
    if not digest.startswith(official.sha256):
        raise WeightsError(f"weights {chosen.name}: {uri} has sha256 {digest[:16]}…; expected {offered(chosen)}; "
                           "get the file again")
    return official.convert(data)


def offered(chosen: weights.Network) -> str:
    """The files that a network comes in: address or package, and sha256."""
    ways = [f"{one.url} (sha256 {one.sha256}…)" if isinstance(one, weights.OfficialFile)
            else f"{one.archive} (sha256 {one.archive_sha256[:16]}…) of package {one.requirement}" for one in chosen.sources]
    return " or ".join(ways)


def tensors_sha256(state: dict[str, Tensor]) -> str:
    """Law: the same for the same tensors, whichever file they came from."""
    return hashlib.sha256(fetching.encode(state)).hexdigest()


# ---------------------------------------------------------------- networks


def inception(state: dict[str, Tensor]) -> FeatureNetwork:
    """Inception-v3 of the FID paper, computed by torch-fidelity: features of its last pooling, D = 2048."""
    torchvision_ready()
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    # The package reads weights from a file only, by unpickling; this file is ours, written from checked tensors.
    with tempfile.TemporaryDirectory(prefix="infd-inception-") as folder:
        path = os.path.join(folder, "weights.pth")
        torch.save(state, path)
        try:
            module = FeatureExtractorInceptionV3(INCEPTION, ["2048"], feature_extractor_weights_path=path)
        except RuntimeError as error:
            raise WeightsError(f"{INCEPTION}: {str(error).splitlines()[-1].strip()}; expected the published state; get the "
                               "weights anew") from error
    return FeatureNetwork(
        name=INCEPTION, sha256=tensors_sha256(state), dim=2048,
        trunk=First(module),
        input="299 x 299 by TensorFlow 1's bilinear filter (no antialias, align_corners false), (x - 128) / 128, inside "
              "the network")


class First(nn.Module):
    """A module that gives a tuple -> its first part."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, images: Tensor) -> Tensor:
        return self.module(images)[0]


def efficientnet_lite0(state: dict[str, Tensor]) -> FeatureNetwork:
    """EfficientNet-Lite0's pooled features, D = 1280."""
    side = efficientnet.INPUT_PX
    return FeatureNetwork(
        name="efficientnet-lite0", sha256=tensors_sha256(state), dim=efficientnet.FEATURES,
        trunk=Prepared(efficientnet.EfficientNetLite0.of(state), side=side),
        input=f"{side} x {side}, antialiased bilinear; (x - 127) / 128")


class Prepared(nn.Module):
    """A network behind the resize and the normalisation of its input: uint8 (B, 3, H, W) -> (B, D)."""

    shift: Tensor
    scale: Tensor

    def __init__(self, module: nn.Module, *, side: int, filter: str = "bilinear", shift: Tensor | float = 0.0,
                 scale: Tensor | float = 1.0) -> None:
        super().__init__()
        self.module, self.side, self.filter = module, side, filter
        self.register_buffer("shift", torch.as_tensor(shift))
        self.register_buffer("scale", torch.as_tensor(scale))

    def forward(self, images: Tensor) -> Tensor:
        x = images.float()
        if x.shape[-2:] != (self.side, self.side):
            x = F.interpolate(x, (self.side, self.side), mode=self.filter, antialias=True).clamp(0, 255)
        found = self.module((x - self.shift) / self.scale)
        if not isinstance(found, Tensor) or found.dim() != 2:
            kind = f"a tensor of {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
            raise WeightsError(f"network: it gives {kind}; expected a tensor (images, features); wrap it so that it does")
        return found


def lpips_trunk(name: str, state: dict[str, Tensor]) -> FeatureNetwork:
    """The last feature map of LPIPS' trunk (relu5_3 of VGG16, relu5 of AlexNet), averaged over space."""
    model = Lpips("vgg" if name == "lpips-vgg" else "alex", state)
    return FeatureNetwork(
        name=name, sha256=tensors_sha256(state), dim=LPIPS_DIMS[name],
        trunk=Prepared(LastMap(model), side=224, shift=127.5, scale=127.5),
        input="224 x 224, antialiased bilinear; x / 127.5 - 1, then LPIPS' own shift and scale")


class LastMap(nn.Module):
    """Images (B, 3, H, W) in [-1, 1] -> the last feature map of LPIPS, averaged over space (B, D)."""

    def __init__(self, lpips: Lpips) -> None:
        super().__init__()
        self.lpips = lpips

    def forward(self, rgb: Tensor) -> Tensor:
        return self.lpips.features(rgb)[-1].mean(dim=(2, 3))


def torchscript(config: NetworkConfig, *, device: str = "cpu") -> FeatureNetwork:
    """A network of the user's own (DINOv2, CLIP, …) in a TorchScript file: RGB (B, 3, s, s), normalised -> (B, D).

    Raises WeightsError: no file, another sha256 than the config states, or no TorchScript.
    """
    if not storage.exists(config.weights):
        raise WeightsError(f"network {config.label}: no file {config.weights}; expected a TorchScript file with sha256 "
                           f"{config.sha256[:16]}…; put it there, or name another place")
    data = storage.read_bytes(config.weights)
    digest = hashlib.sha256(data).hexdigest()
    if digest != config.sha256.lower():
        raise WeightsError(f"network {config.label}: {config.weights} has sha256 {digest[:16]}…; expected "
                           f"{config.sha256[:16]}…; name the right file, or its hash")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=DeprecationWarning)  # of TorchScript itself
            module = torch.jit.load(io.BytesIO(data), map_location=device).eval()
    except RuntimeError as error:
        raise WeightsError(f"network {config.label}: {config.weights} is no TorchScript file; expected one; save the "
                           "network with torch.jit.trace(…).save(…)") from error
    shift, scale = (255 * torch.tensor(values)[:, None, None] for values in (config.mean, config.std))
    trunk = Prepared(module, side=config.input_px, filter=config.resize, shift=shift, scale=scale).to(device)
    with torch.no_grad():
        dim = trunk(torch.zeros(1, 3, config.input_px, config.input_px, dtype=torch.uint8, device=device)).shape[1]
    return FeatureNetwork(
        name=config.label, sha256=digest, dim=dim, trunk=trunk, device=device,
        input=f"{config.input_px} x {config.input_px}, antialiased {config.resize}; (x / 255 - {list(config.mean)}) / "
              f"{list(config.std)}")
