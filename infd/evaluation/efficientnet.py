"""EfficientNet-Lite0, the classifier whose pooled features stand in where Inception's weights cannot be had.

Attributes are named as in the published state, so that it loads strictly. Shapes: B batch, C channels, H W side.
Source: Tan and Le 2019, table 1; the "lite" variant has no squeeze-and-excitation and ReLU6 for swish.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from infd.errors import WeightsError

FEATURES = 1280
INPUT_PX = 224
STAGES = ((1, 3, 1, 16, 1), (6, 3, 2, 24, 2), (6, 5, 2, 40, 2), (6, 3, 2, 80, 3), (6, 5, 1, 112, 3), (6, 5, 2, 192, 4),
          (6, 3, 1, 320, 1))
"""(expansion, kernel, stride of the first, channels out, repeats)."""


class SameConv(nn.Conv2d):
    """A convolution without bias that pads as TensorFlow's "same": an odd pixel goes to the bottom and the right."""

    def __init__(self, in_dim: int, out_dim: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(in_dim, out_dim, kernel, stride, groups=groups, bias=False)

    def forward(self, input: Tensor) -> Tensor:
        kernel, stride = self.kernel_size[0], self.stride[0]
        short = [max((-(-side // stride) - 1) * stride + kernel - side, 0) for side in input.shape[-2:]]
        pad = (short[1] // 2, short[1] - short[1] // 2, short[0] // 2, short[0] - short[0] // 2)
        return super().forward(F.pad(input, pad))


class Block(nn.Module):
    """An inverted residual: expand, filter each channel alone, project."""

    def __init__(self, in_dim: int, out_dim: int, *, expansion: int, kernel: int, stride: int) -> None:
        super().__init__()
        inner = in_dim * expansion
        if expansion != 1:
            self._expand_conv, self._bn0 = SameConv(in_dim, inner, 1), norm(inner)
        self._depthwise_conv, self._bn1 = SameConv(inner, inner, kernel, stride, inner), norm(inner)
        self._project_conv, self._bn2 = SameConv(inner, out_dim, 1), norm(out_dim)
        self.expands, self.residual = expansion != 1, stride == 1 and in_dim == out_dim

    def forward(self, x: Tensor) -> Tensor:
        inner = F.relu6(self._bn0(self._expand_conv(x))) if self.expands else x
        inner = F.relu6(self._bn1(self._depthwise_conv(inner)))
        out = self._bn2(self._project_conv(inner))
        return x + out if self.residual else out


class EfficientNetLite0(nn.Module):
    """RGB (B, 3, 224, 224) in 0 to 255 -> pooled features (B, 1280); `classify` gives ImageNet's logits (B, 1000)."""

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem, self._bn0 = SameConv(3, 32, 3, 2), norm(32)
        blocks, dim = [], 32
        for expansion, kernel, first, out_dim, repeats in STAGES:
            for repeat in range(repeats):
                blocks.append(Block(dim, out_dim, expansion=expansion, kernel=kernel, stride=first if repeat == 0 else 1))
                dim = out_dim
        self._blocks = nn.ModuleList(blocks)
        self._conv_head, self._bn1 = SameConv(dim, FEATURES, 1), norm(FEATURES)
        self._fc = nn.Linear(FEATURES, 1000)

    @classmethod
    def of(cls, state: Mapping[str, Tensor]) -> "EfficientNetLite0":
        """With these weights, frozen. Raises WeightsError: names or shapes are others."""
        with torch.device("meta"):
            model = cls()
        try:
            model.load_state_dict(dict(state), assign=True)
        except RuntimeError as error:
            raise WeightsError(f"efficientnet-lite0: {str(error).splitlines()[-1].strip()}; expected its published state; "
                               "get the weights anew") from error
        return model.eval().requires_grad_(False)

    def forward(self, rgb: Tensor) -> Tensor:
        x = F.relu6(self._bn0(self._conv_stem((rgb - 127) / 128)))     # (B, 32, 112, 112)
        for block in self._blocks:
            x = block(x)
        return F.relu6(self._bn1(self._conv_head(x))).mean(dim=(2, 3))  # (B, 320, 7, 7) -> (B, 1280)

    def classify(self, rgb: Tensor) -> Tensor:
        return self._fc(self(rgb))


def norm(dim: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(dim, eps=1e-3)
