"""The residual block of E, D and the denoiser: diffusers' `ResnetBlock2D` without work that does nothing here."""

from torch import Tensor, nn

from infd.compat import torchvision_ready

torchvision_ready()

from diffusers.models.resnet import ResnetBlock2D  # noqa: E402  (after torchvision is ready)


class ResBlock(ResnetBlock2D):
    """A `ResnetBlock2D` without resampling, its time added after the first convolution, its sum not scaled.

    diffusers' forward copies its input to the plain layout before a 1 x 1 shortcut in training (lest DDP warn that a gradient
    lies otherwise than its bucket, which costs less), there and back where the network is in channels last, and divides the
    sum by 1. Law: the same numbers, bit for bit in the plain layout.
    """

    def forward(self, input_tensor: Tensor, temb: Tensor | None = None) -> Tensor:
        """(B, C, h, w) and the embedded time (B, T) -> (B, D, h, w)."""
        hidden = self.conv1(self.nonlinearity(self.norm1(input_tensor)))
        if self.time_emb_proj is not None:
            hidden = hidden + self.time_emb_proj(self.nonlinearity(temb))[:, :, None, None]
        hidden = self.conv2(self.dropout(self.nonlinearity(self.norm2(hidden))))
        return (input_tensor if self.conv_shortcut is None else self.conv_shortcut(input_tensor)) + hidden


def with_lean_blocks(network: nn.Module) -> nn.Module:
    """`network`, a `ResBlock` wherever it has a block of that kind; weights and their names stay."""
    for module in network.modules():
        if type(module) is ResnetBlock2D:
            plain = module.upsample is None and module.downsample is None and module.time_embedding_norm != "scale_shift"
            if not plain or module.skip_time_act or module.output_scale_factor != 1:
                raise AssertionError(f"a block of another kind: {module}")
            module.__class__ = ResBlock
    return network
