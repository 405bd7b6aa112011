"""Small checkpoints of random networks, and a dataset, for tests of evaluation."""

import dataclasses
from pathlib import Path

import torch
from pictures import encoded, picture

from infd import checkpoint
from infd.config import AutoencoderConfig, DenoiserConfig, DiffusionTrainingConfig, IngestConfig, LatentConfig, LoopConfig
from infd.config_form import flat
from infd.data.snapshot import Dataset, write_dataset
from infd.models.autoencoder import Autoencoder
from infd.models.denoiser import Denoiser
from infd.presets import tiny
from infd.training import encode

SMALL = AutoencoderConfig(widths=(8, 16), blocks=1, mid_attention=False, z_dim=2, quantizer="kl", renderer_dim=8, norm_groups=4)
CROP = dataclasses.replace(tiny().crop, lowres_px=32, patch_px=32, r_min=32, r_max=128)


def autoencoder_checkpoint(uri: str | Path, *, seed: int = 0, metrics: dict[str, float] | None = None, step: int = 1,
                           changes: dict[str, object] | None = None) -> str:
    """Of stage one; its encoder sees 32 x 32. `changes`: fields of the config that it tells."""
    torch.manual_seed(seed)
    config = dataclasses.replace(tiny(), model=SMALL, crop=CROP)
    tensors = {f"autoencoder.{name}": value for name, value in Autoencoder(SMALL).state_dict().items()}
    checkpoint.save(str(uri), model=tensors, train_state={}, meta={
        "stage": "autoencoder", "step": step, "config": flat(config) | (changes or {}), "metrics": metrics or {},
        "snapshot": "", "weights": {}})
    return str(uri)


def diffusion_checkpoint(uri: str | Path, *, seed: int = 0) -> str:
    """Of stage two; the zeros that a denoiser begins with would hide its part."""
    torch.manual_seed(seed)
    config = DiffusionTrainingConfig(model=DenoiserConfig(widths=(8, 16), blocks=1, head_dim=8, norm_groups=4, z_dim=2),
                                     loop=LoopConfig(steps=1, batch=1))
    denoiser, autoencoder = Denoiser(config.model), Autoencoder(SMALL)
    for parameter in denoiser.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    tensors = {f"{name}.{key}": value for name, part in (("denoiser", denoiser), ("autoencoder", autoencoder))
               for key, value in part.state_dict().items()}
    checkpoint.save(str(uri), model=tensors, train_state={}, meta={
        "stage": "latent_diffusion", "step": 1, "config": flat(config), "metrics": {}, "groups": [],
        "autoencoder": {"config": flat(SMALL), "lowres_px": 32, "patch_px": 32}})
    return str(uri)


def photographs(uri: str | Path, count: int = 12) -> Dataset:
    """A dataset of small photographs, about half of them in its val split."""
    sources = [(f"photo-{seed:02d}.png", encoded(picture(100 + 4 * seed, 80, seed))) for seed in range(count)]
    return write_dataset(sources, str(uri), IngestConfig(min_side_px=64, val_fraction=0.5))


def encoded_latents(uri: str | Path, dataset: Dataset, autoencoder: str) -> str:
    """All photos of a dataset through the encoder of a checkpoint."""
    pins = encode.begin(str(uri), encode.pins_of(dataset.snapshot_uri, autoencoder, LatentConfig()))
    encoder = encode.Encoder.open(str(uri), pins.snapshot, LatentConfig(), device="cpu")
    for index in range(len(dataset.manifest.shards)):
        encoder.unit(index)
    encode.finish(str(uri), pins)
    return str(uri)
