"""Encoder E, quantizer Q, decoder D and renderer R as one module. Source: INFD section 4, supplement J.1.

    lowres (B,3,L,L) ─ E ─▶ z (B,Z,l,l) ─ Q ─▶ z_q ─ D ─▶ phi (B,C,L,L) ─┐
                                          r, y, x: a patch of the view ──┴─ R ─▶ RGB (B,3,P,P)

E and D are the blocks of diffusers' autoencoders (as in latent diffusion); D ends before its last norm.
Shapes: B batch, L side of lowres, l = L / factor, Z channels of z, C channels of phi, P side of the patch.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from infd.compat import torchvision_ready
from infd.config import AutoencoderConfig
from infd.models.fields import Field, nearest_features, query_grid, query_patch
from infd.models.quantizers import FSQ, KL, VQ, Quantized
from infd.models.renderers.clif import CLIF


class AutoencoderOutput(NamedTuple):
    """What a training step needs of one forward pass."""

    pred: Tensor
    """RGB (B, 3, P, P), nominally in [-1, 1]."""
    last_features: Tensor
    """Input of the renderer's last convolution, part of the graph: `losses.adversarial` wants it. (B, D, P, P), or with
    pad_px (B, D, P + 2, P + 2): its border stands in the place of the convolution's own zero padding."""
    quantizer_loss: Tensor
    """vq: the codebook loss; fsq: 0; kl: the divergence summed over z, mean over the batch."""
    z: Tensor
    """(B, Z, l, l): vq: E's output, before Q; kl: the sample (or mean) that was decoded."""
    codes: Tensor | None
    """(B, l, l) int64; None for kl."""


class Autoencoder(nn.Module):
    """The stage-one model. Images in and out are in [-1, 1]; L must be divisible by `config.factor`."""

    lowres_px: int | None = None
    """The L that it is or was trained at; other sides work, but were not trained."""
    patch_px: int | None = None
    """The P that it is or was trained at: the side of what the renderer's norms saw at once."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        moments = 2 if config.quantizer == "kl" else 1
        self.encoder = make_encoder(config)
        self.quant_conv = nn.Conv2d(moments * config.z_dim, moments * config.z_dim, 1)
        self.quantizer = make_quantizer(config)
        self.post_quant_conv = nn.Conv2d(config.z_dim, config.z_dim, 1)
        self.decoder = make_decoder(config)
        self.renderer = CLIF.from_config(config)

    def forward(
        self, lowres: Tensor, r: Tensor, y: Tensor, x: Tensor, patch_px: int, noise: Tensor | None = None, *,
        pad_px: int = 0,
    ) -> AutoencoderOutput:
        """Render the P x P patch at (y, x) of each view at side r. The one path of training and validation.

        lowres (B, 3, L, L); r, y, x (B,) int64 on the same device; coordinates and cells are made from them there.
        noise (B, Z, l, l), kl only: z = mean + std * noise. Without it, train mode draws it from torch's global
        generator and eval mode takes the mean; vq and fsq have no noise. pad_px: render that much more around the
        patch, clipped at the view's border, and crop. Law: it is then the tile that `Field.render_tiles` makes.
        """
        raw = self.moments(lowres)
        if isinstance(self.quantizer, KL):
            if noise is None and self.training:
                noise = torch.randn_like(raw[:, :self.config.z_dim], dtype=torch.float32)
            quantized = self.quantizer(raw, noise)
            z = quantized.z_q
        else:
            quantized, z = self.quantizer(raw), raw
        phi, last = self.decode(quantized.z_q), self.renderer.last_layer
        if pad_px:
            made: Any = torch.compiler.disable(padded_features)    # its sides are many, and compiled anew for each
            features = made(self.renderer, phi, r, y, x, patch_px, pad_px)
            pred = F.conv2d(features, last.weight, last.bias)
        else:
            features = self.renderer.features(query_patch(phi, r, y, x, patch_px))
            pred = last(features)
        return AutoencoderOutput(pred, features, quantized.loss, z, quantized.codes)

    def moments(self, lowres: Tensor) -> Tensor:
        """E's own output: vq, fsq: z (B, Z, l, l); kl: means and log-variances (B, 2 Z, l, l)."""
        return self.quant_conv(self.encoder(lowres))

    def encode(self, lowres: Tensor, noise: Tensor | None = None) -> Tensor:
        """lowres (B, 3, L, L) -> z (B, Z, l, l). vq, fsq: before Q. kl: the mean, or mean + std * noise where given."""
        raw = self.moments(lowres)
        return self.quantizer(raw, noise).z_q if isinstance(self.quantizer, KL) else raw

    def quantize(self, z: Tensor) -> Quantized:
        """vq, fsq: z -> its nearest codes. kl: z itself (it has been sampled already), loss 0."""
        return Quantized(z, z.new_zeros(()), None) if isinstance(self.quantizer, KL) else self.quantizer(z)

    def decode(self, z_q: Tensor) -> Tensor:
        """z as D takes it (vq, fsq: after `quantize`) (B, Z, l, l) -> phi (B, C, L, L)."""
        return self.decoder(self.post_quant_conv(z_q))

    def scale_equivariance(self, lowres: Tensor, z: Tensor) -> Tensor:
        """Mean |render of the halved z - halved lowres| over the view at side L / 2: a scalar.

        Halving is the mean of 2 x 2. It asks the decoder to treat a smaller latent as a smaller image, which takes
        high frequencies out of z. Source: Skorokhodov et al. 2025 (diffusability of autoencoders), section 4; Kouzelis
        et al. 2025 (EQ-VAE), equation 4.
        """
        smaller = F.avg_pool2d(lowres, 2)
        side = smaller.shape[-1]
        phi = self.decode(self.quantize(F.avg_pool2d(z, 2)).z_q)
        start = torch.zeros(len(z), dtype=torch.int64, device=z.device)
        return (self.renderer(query_patch(phi, start + side, start, start, side)) - smaller).abs().mean()

    def field(self, z: Tensor) -> Field:
        """z of `encode`, or of a diffusion model (B, Z, l, l) -> the field it stands for. Quantizes it (vq, fsq)."""
        return Field(self.decode(self.quantize(z).z_q), self.renderer, patch_px=self.patch_px)


def padded_features(
    renderer: CLIF, phi: Tensor, r: Tensor, y: Tensor, x: Tensor, patch_px: int, pad_px: int,
) -> Tensor:
    """Features of each patch and one pixel around it, zero outside the view: (B, D, P + 2, P + 2).

    Windows of P + 2 pad_px, clipped at the border of the view, are rendered in groups of equal sides, because the
    renderer's norms see what is rendered at once.
    """
    top, left = (y - pad_px).clamp(min=0), (x - pad_px).clamp(min=0)
    height, width = (torch.minimum(start + patch_px + pad_px, r) - first for start, first in ((y, top), (x, left)))
    steps = torch.arange(patch_px + 2, device=phi.device)
    parts, places = [], []
    for sides in torch.stack([height, width], 1).unique(dim=0).tolist():
        at = ((height == sides[0]) & (width == sides[1])).nonzero()[:, 0]
        side = r[at, None]
        rows, columns = (first[at, None] + torch.arange(length, device=phi.device)
                         for first, length in zip((top, left), sides, strict=True))
        window = renderer.features(query_grid(phi[at], rows, columns, side, side))
        window = F.pad(window, (1, 1, 1, 1))                       # of which only what lies outside the view is looked at
        parts.append(nearest_features(window, (y - top)[at, None] + steps, (x - left)[at, None] + steps))
        places.append(at)
    return torch.cat(parts)[torch.cat(places).argsort()]


def make_quantizer(config: AutoencoderConfig) -> VQ | FSQ | KL:
    match config.quantizer:
        case "kl":
            return KL()
        case "fsq":
            return FSQ(config.fsq_levels)
        case "vq":
            return VQ(size=config.codebook_size, z_dim=config.z_dim, beta=config.vq_beta, beta_on=config.vq_beta_on)


def make_encoder(config: AutoencoderConfig) -> nn.Module:
    """RGB (B, 3, L, L) -> (B, Z or 2 Z, l, l), without the 1 x 1 convolution that follows."""
    torchvision_ready()
    from diffusers.models.autoencoders.vae import Encoder

    from infd.models.blocks import with_lean_blocks

    encoder: nn.Module = Encoder(
        in_channels=3, out_channels=config.z_dim, down_block_types=("DownEncoderBlock2D",) * len(config.widths),
        block_out_channels=config.widths, layers_per_block=config.blocks, norm_num_groups=config.norm_groups,
        double_z=config.quantizer == "kl", mid_block_add_attention=config.mid_attention)
    encoder = with_lean_blocks(encoder)
    return replicate_padding(encoder) if config.padding == "replicate" else encoder


def make_decoder(config: AutoencoderConfig) -> nn.Module:
    """z (B, Z, l, l) -> phi (B, C, L, L), one block a level more than E; no final norm, act or convolution."""
    torchvision_ready()
    from diffusers.models.autoencoders.vae import Decoder

    from infd.models.blocks import with_lean_blocks

    decoder: nn.Module = Decoder(
        in_channels=config.z_dim, out_channels=3, up_block_types=("UpDecoderBlock2D",) * len(config.widths),
        block_out_channels=config.widths, layers_per_block=config.blocks, norm_num_groups=config.norm_groups,
        mid_block_add_attention=config.mid_attention)
    for name in ("conv_norm_out", "conv_act", "conv_out"):
        setattr(decoder, name, nn.Identity())
    decoder = with_lean_blocks(decoder)
    return replicate_padding(decoder) if config.padding == "replicate" else decoder


class ReplicateDownsample(nn.Module):
    """Halves the side with a given 3 x 3 convolution of stride 2; the last row and column are repeated once."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(with_border(x, before=0))


class ReplicateConv2d(nn.Conv2d):
    """A 3 x 3 convolution that repeats the border once all around."""

    @classmethod
    def of(cls, conv: nn.Conv2d) -> "ReplicateConv2d":
        """With the parameters of `conv`."""
        with torch.device("meta"):
            made = cls(conv.in_channels, conv.out_channels, 3)
        made.weight, made.bias = conv.weight, conv.bias
        return made

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(with_border(input, before=1))


def with_border(x: Tensor, *, before: int) -> Tensor:
    """The last row and column of x (B, C, h, w) repeated once, the first ones `before` times."""
    if not torch.compiler.is_compiling():
        return F.pad(x, (before, 1, before, 1), mode="replicate")
    # torch 2.13's inductor expects another layout of this padding's gradient than it gets; joined, it fuses it as well
    x = torch.cat([*[x[:, :, :1]] * before, x, x[:, :, -1:]], dim=2)
    return torch.cat([*[x[..., :1]] * before, x, x[..., -1:]], dim=3)


def replicate_padding(network: nn.Module) -> nn.Module:
    """Let every 3 x 3 convolution of E or D repeat the border in the place of zeros; names of weights stay."""
    for module in list(network.modules()):
        samplers: Any = getattr(module, "downsamplers", None) or ()
        for index, sampler in enumerate(samplers):
            samplers[index] = ReplicateDownsample(sampler.conv)
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Conv2d) and child.padding == (1, 1):
                setattr(module, name, ReplicateConv2d.of(child))
    return network
