"""An autoencoder of latent diffusion in CompVis's layout, small and plain, with a forward of its own.

Written from ../shared/reference.md §1.2 and §1.3: no line of it comes from our model or from diffusers.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def norm(dim: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, dim, eps=1e-6)


def act(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


class Block(nn.Module):
    def __init__(self, a: int, b: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = norm(a), nn.Conv2d(a, b, 3, padding=1)
        self.norm2, self.conv2 = norm(b), nn.Conv2d(b, b, 3, padding=1)
        if a != b:
            self.nin_shortcut = nn.Conv2d(a, b, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv2(act(self.norm2(self.conv1(act(self.norm1(x))))))
        return h + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class Attention(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = norm(dim)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(dim, dim, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (layer(h).flatten(2) for layer in (self.q, self.k, self.v))  # (B, C, N)
        weight = torch.softmax(q.transpose(1, 2) @ k * q.shape[1] ** -0.5, dim=-1)  # (B, N queries, N keys)
        return x + self.proj_out((v @ weight.transpose(1, 2)).reshape(x.shape))


class Sampler(nn.Module):
    def __init__(self, dim: int, *, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, 3, stride=stride, padding=0 if stride == 2 else 1)

    def forward(self, x: Tensor) -> Tensor:
        if self.conv.stride == (2, 2):
            return self.conv(F.pad(x, (0, 1, 0, 1)))
        return self.conv(x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3))


def middle(dim: int) -> nn.ModuleDict:
    return nn.ModuleDict({"block_1": Block(dim, dim), "attn_1": Attention(dim), "block_2": Block(dim, dim)})


class Encoder(nn.Module):
    def __init__(self, widths: tuple[int, ...], blocks: int, out: int) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(3, widths[0], 3, padding=1)
        self.down = nn.ModuleList()
        before = widths[0]
        for level, width in enumerate(widths):
            part = nn.Module()
            part.block = nn.ModuleList([Block(before if i == 0 else width, width) for i in range(blocks)])
            if level < len(widths) - 1:
                part.downsample = Sampler(width, stride=2)
            self.down.append(part)
            before = width
        self.mid = middle(before)
        self.norm_out, self.conv_out = norm(before), nn.Conv2d(before, out, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_in(x)
        for part in self.down:
            for block in part.block:
                h = block(h)
            if hasattr(part, "downsample"):
                h = part.downsample(h)
        for layer in self.mid.values():
            h = layer(h)
        return self.conv_out(act(self.norm_out(h)))


class Decoder(nn.Module):
    def __init__(self, widths: tuple[int, ...], blocks: int, z_dim: int) -> None:
        super().__init__()
        before = widths[-1]
        self.conv_in = nn.Conv2d(z_dim, before, 3, padding=1)
        self.mid = middle(before)
        parts = []
        for level in reversed(range(len(widths))):
            part = nn.Module()
            part.block = nn.ModuleList([Block(before if i == 0 else widths[level], widths[level]) for i in range(blocks + 1)])
            if level > 0:
                part.upsample = Sampler(widths[level], stride=1)
            parts.insert(0, part)
            before = widths[level]
        self.up = nn.ModuleList(parts)
        self.norm_out, self.conv_out = norm(before), nn.Conv2d(before, 3, 3, padding=1)

    def features(self, z: Tensor) -> Tensor:
        """What the last norm sees."""
        h = self.conv_in(z)
        for layer in self.mid.values():
            h = layer(h)
        for part in reversed(self.up):
            for block in part.block:
                h = block(h)
            if hasattr(part, "upsample"):
                h = part.upsample(h)
        return h


class LatentDiffusionAutoencoder(nn.Module):
    """`codes` 0: the KL autoencoder."""

    def __init__(self, *, widths: tuple[int, ...] = (32, 64, 64), blocks: int = 2, z_dim: int = 3, codes: int = 0) -> None:
        super().__init__()
        moments = z_dim if codes else 2 * z_dim
        self.encoder, self.decoder = Encoder(widths, blocks, moments), Decoder(widths, blocks, z_dim)
        self.quant_conv, self.post_quant_conv = nn.Conv2d(moments, moments, 1), nn.Conv2d(z_dim, z_dim, 1)
        if codes:
            self.quantize = nn.ModuleDict({"embedding": nn.Embedding(codes, z_dim)})

    def moments(self, x: Tensor) -> Tensor:
        return self.quant_conv(self.encoder(x))

    def features(self, z: Tensor) -> Tensor:
        return self.decoder.features(self.post_quant_conv(z))
