"""The patch discriminator of stage one. Source: pix2pix (Isola et al. 2017), section 6.1.2; INFD supplement J.1."""

import math

from torch import Tensor, nn

from infd.config import DiscriminatorConfig


class PatchDiscriminator(nn.Module):
    """RGB (B, 3, P, P) -> a logit for each overlapping field, (B, 1, h, w); 256 px and three layers give 30 x 30.

    4 x 4 convolutions: one of stride 2, `layers` middle ones with a norm (the last of stride 1), one to a logit.
    Weights start as N(0, 0.02), scales of norms as N(1, 0.02).
    """

    def __init__(self, config: DiscriminatorConfig) -> None:
        super().__init__()
        dims = [config.base_dim * min(2**level, 8) for level in range(config.layers + 1)]
        parts: list[nn.Module] = [nn.Conv2d(3, dims[0], 4, stride=2, padding=1), nn.LeakyReLU(0.2, inplace=True)]
        for level in range(config.layers):
            stride = 1 if level == config.layers - 1 else 2
            parts += [
                nn.Conv2d(dims[level], dims[level + 1], 4, stride=stride, padding=1, bias=config.norm == "none"),
                norm(config.norm, dims[level + 1]), nn.LeakyReLU(0.2, inplace=True)]
        parts.append(nn.Conv2d(dims[-1], 1, 4, padding=1))
        self.net = nn.Sequential(*parts)
        self.net.apply(initialize)

    def forward(self, rgb: Tensor) -> Tensor:
        return self.net(rgb)


def norm(kind: str, channels: int) -> nn.Module:
    """BatchNorm as published, GroupNorm of at most 32 groups, or nothing."""
    if kind == "none":
        return nn.Identity()
    return nn.BatchNorm2d(channels) if kind == "batch" else nn.GroupNorm(math.gcd(channels, 32), channels)


def initialize(module: nn.Module) -> None:
    """DCGAN's start; biases of convolutions keep torch's."""
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, 0, 0.02)
    elif isinstance(module, nn.BatchNorm2d | nn.GroupNorm):
        nn.init.normal_(module.weight, 1, 0.02)
        nn.init.zeros_(module.bias)
