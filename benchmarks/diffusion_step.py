"""One training step of stage two: the published loop, which encodes each batch, each of our savings alone, and ours.

Called by `python -m benchmarks.train_step --stage two`; data is random. The published loop here is written plainly: E of
the batch without gradients, noise, the UNet with attention as two matrix products and recomputed in the backward, AdamW
one parameter after the other, the moving average in a Python loop, float32, eager.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recomputed

from benchmarks.measuring import Candidate, Update, table
from infd.config import AutoencoderTrainingConfig, DiffusionTrainingConfig
from infd.data.latents import LatentBatch
from infd.models.autoencoder import Autoencoder
from infd.training.encode import moments
from infd.training.latent_diffusion import DiffusionStage
from infd.training.plan import denoiser_flops
from infd.training.world import World


@dataclass(frozen=True, kw_only=True)
class Way:
    """One row: what is switched on."""

    name: str
    cached: bool = False
    plain_attention: bool = False
    plain_updates: bool = False
    precision: Literal["float32", "tf32", "bfloat16"] = "float32"
    channels_last: bool = False
    compiled: bool = False


PUBLISHED = Way(name="published: encodes, float32, eager", plain_attention=True, plain_updates=True)
WAYS = [
    PUBLISHED,
    replace(PUBLISHED, name="cached latents, alone", cached=True),
    replace(PUBLISHED, name="fused attention, nothing recomputed, alone", plain_attention=False),
    replace(PUBLISHED, name="AdamW and average of all at once, alone", plain_updates=False),
    Way(name="ours, float32, eager", cached=True),
    Way(name="ours, float32, channels last", cached=True, channels_last=True),
    Way(name="ours, float32, compiled", cached=True, compiled=True),
    Way(name="ours, float32, compiled, channels last", cached=True, compiled=True, channels_last=True),
]
ON_GPU = [
    replace(PUBLISHED, name="TF32, alone", precision="tf32"),
    replace(PUBLISHED, name="bfloat16, alone", precision="bfloat16"),
    Way(name="ours, bfloat16, eager", cached=True, precision="bfloat16", channels_last=True),
    Way(name="ours", cached=True, precision="bfloat16", compiled=True),
    Way(name="ours, channels last", cached=True, precision="bfloat16", compiled=True, channels_last=True),
]


class Loop:
    """The update of one way."""

    def __init__(self, config: DiffusionTrainingConfig, encoder: Autoencoder, way: Way, device: torch.device) -> None:
        self.way, self.encoder, self.device = way, encoder, device
        self.stage = DiffusionStage(config, world=World(device=device))
        if way.plain_attention:
            plain_attention(self.stage.denoiser)
        if way.plain_updates:
            group = self.stage.adam.param_groups[0]
            self.stage.adam = torch.optim.AdamW(
                group["params"], lr=group["lr"], betas=group["betas"], weight_decay=group["weight_decay"],
                foreach=False)

    def step(self, batch: tuple[Tensor, LatentBatch], step: int) -> None:
        views, latents = batch
        if not self.way.cached:
            latents = replace(latents, moments=moments(self.encoder, views))
        stage, average = self.stage, self.stage.average
        if self.way.plain_updates:
            stage.average = None
        stage.step(latents, step)
        if self.way.plain_updates and average is not None:
            stage.average = average
            keep = stage.config.optimizer.ema_decay
            with torch.no_grad():
                for kept, value in zip(average.parameters(), stage.denoiser.parameters(), strict=True):
                    kept.mul_(keep).add_(value, alpha=1 - keep)


def plain_attention(denoiser: nn.Module) -> None:
    """Attention as two products and a softmax, recomputed in the backward."""
    from diffusers.models.attention_processor import Attention, AttnProcessor

    for module in denoiser.modules():
        if isinstance(module, Attention):
            module.set_processor(AttnProcessor())
            module.forward = partial(again, module.forward)  # pyright: ignore[reportAttributeAccessIssue]


def again(forward: Callable[..., Any], *args: Any, **more: Any) -> Any:
    return recomputed(forward, *args, use_reentrant=False, **more)


def random_batches(config: DiffusionTrainingConfig, encoder: AutoencoderTrainingConfig) -> Iterator[tuple[Tensor, LatentBatch]]:
    count, side = config.loop.batch, encoder.crop.lowres_px
    generator = torch.Generator().manual_seed(0)
    views = torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=generator)
    channels = encoder.model.z_dim * (2 if encoder.model.quantizer == "kl" else 1)
    z = torch.randn(count, channels, side // encoder.model.factor, side // encoder.model.factor, generator=generator)
    return itertools.repeat((views, LatentBatch(0, torch.arange(count), z)))


def candidate(base: DiffusionTrainingConfig, encoder: AutoencoderTrainingConfig, way: Way, batch: int,
              device: torch.device) -> Candidate:
    config = replace(base, loop=replace(base.loop, batch=batch, precision=way.precision, compiled=way.compiled,
                                        channels_last=way.channels_last),
                     diffusion=replace(base.diffusion, scale=base.diffusion.scale or 1.0))

    def make() -> tuple[Update, Iterator[tuple[Tensor, LatentBatch]]]:
        autoencoder = Autoencoder(encoder.model).to(device).eval().requires_grad_(False)
        return Loop(config, autoencoder, way, device).step, random_batches(config, encoder)

    return Candidate(way.name, batch, make)


def all_ways(base: DiffusionTrainingConfig, encoder: AutoencoderTrainingConfig, batches: list[int],
             device: torch.device) -> None:
    """All rows, to stdout."""
    gpu = device.type == "cuda"
    ways = [(way, base.loop.batch) for way in (*WAYS, *(ON_GPU if gpu else []))]
    ways += [(ON_GPU[-2] if gpu else WAYS[4], batch) for batch in batches]
    flops = sum(denoiser_flops(base, side=encoder.crop.lowres_px // encoder.model.factor).values())
    table([candidate(base, encoder, way, batch, device) for way, batch in ways], flops=flops, device=device, unit="latents")
