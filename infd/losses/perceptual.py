"""LPIPS, the perceptual distance of Zhang et al. 2018: a frozen trunk and five linear heads.

The networks are those of the `lpips` package; no weights are fetched here. Images are in [-1, 1].
"""

import warnings
from collections.abc import Mapping
from typing import Literal, cast

import torch
from torch import Tensor, nn

from infd.compat import torchvision_ready
from infd.errors import WeightsError

NUM_HEADS = 5


class Lpips(nn.Module):
    """Distance of two batches of images. Frozen, and in eval mode for ever: `train()` does not switch dropout on."""

    def __init__(self, net: Literal["vgg", "alex"], state: Mapping[str, Tensor]) -> None:
        """`state`: names of `lpips.LPIPS(net=net).state_dict()`, strictly; widths follow the tensors.

        Raises WeightsError naming tensors that are missing, unknown or of another kernel.
        """
        super().__init__()
        self.model = load(net, state)
        self.train(False)

    @classmethod
    def untrained(cls, net: Literal["vgg", "alex"]) -> "Lpips":
        """Of random weights: as much work as a trained one, and no use as a distance."""
        return cls(net, dict(made(net).named_parameters()))

    @classmethod
    def from_state_dict(cls, net: Literal["vgg", "alex"], state: Mapping[str, Tensor]) -> "Lpips":
        return cls(net, state)

    def train(self, mode: bool = True) -> "Lpips":
        """Stays in eval mode, whatever a parent asks: dropout would halve the heads at random."""
        return super().train(False)

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        """Two batches (B, 3, H, W) -> (B,). Only `pred` gets a gradient; features of `target` hold no graph."""
        with torch.no_grad():
            wanted = self.features(target)
        return self.distance(self.features(pred), wanted)

    def features(self, rgb: Tensor) -> list[Tensor]:
        """(B, 3, H, W) -> the trunk's five feature maps."""
        net, scaling = cast(nn.Module, self.model.net), cast(nn.Module, self.model.scaling_layer)
        return list(net(scaling(rgb)))

    def distance(self, features: list[Tensor], wanted: list[Tensor]) -> Tensor:
        """Squared difference of unit vectors, weighted by the heads, mean over space, summed over layers: (B,)."""
        total = features[0].new_zeros(features[0].shape[0], dtype=torch.float32)
        for index in range(NUM_HEADS):
            squared = (unit(features[index]) - unit(wanted[index])).square()
            head = getattr(self.model, f"lin{index}")(squared)  # (B, 1, h, w)
            total = total + head.float().mean(dim=(1, 2, 3))
        return total


def unit(x: Tensor) -> Tensor:
    """x / (|x| + 1e-10) over channels, float32; the gradient at x = 0 is 0, not NaN."""
    x = x.float()
    return x / (torch.linalg.vector_norm(x, dim=1, keepdim=True) + 1e-10)


def made(net: Literal["vgg", "alex"]) -> nn.Module:
    """The package's network on the device of the context, of random weights."""
    torchvision_ready()
    import lpips

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module="torchvision")  # of arguments that lpips passes
        return lpips.LPIPS(net=net, pretrained=False, pnet_rand=True, verbose=False)


def scaling() -> nn.Module:
    """The package's fixed shift and scale of colours, which no state holds."""
    import lpips

    return lpips.lpips.ScalingLayer()


def load(net: Literal["vgg", "alex"], state: Mapping[str, Tensor]) -> nn.Module:
    """The package's network with these weights, frozen. It is laid out without memory, so nothing is drawn first."""
    with torch.device("meta"):
        model = made(net)
    model.scaling_layer = scaling()
    wanted = {name for name, _ in model.named_parameters()}
    given = {name for name in state if not name.startswith(("lins.", "scaling_layer."))}
    if wanted != given:
        raise WeightsError(
            f"lpips-{net}: missing {sorted(wanted - given)}, unknown {sorted(given - wanted)}; "
            f"the state dict of lpips.LPIPS(net={net!r}) was expected; fetch the weights anew")
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d) and not name.startswith("lins."):
            adopt(module, name, state)
    return model


def adopt(conv: nn.Conv2d, name: str, state: Mapping[str, Tensor]) -> None:
    """Put `NAME.weight` and `NAME.bias` of the state into the convolution, whatever their widths."""
    weight = state[f"{name}.weight"]
    if weight.dim() != 4 or tuple(weight.shape[2:]) != conv.kernel_size:
        raise WeightsError(f"{name}.weight: shape {tuple(weight.shape)}; a kernel of {conv.kernel_size} was expected")
    conv.weight = nn.Parameter(weight.detach().float(), requires_grad=False)
    if conv.bias is not None:
        conv.bias = nn.Parameter(state[f"{name}.bias"].detach().float(), requires_grad=False)
    conv.out_channels, conv.in_channels = weight.shape[:2]
