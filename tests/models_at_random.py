"""Checkpoints of small random networks, for what needs a model and not a good one."""

from pathlib import Path

import torch

from infd import checkpoint
from infd.config import AutoencoderConfig, DenoiserConfig, DiffusionTrainingConfig, LoopConfig
from infd.config_form import flat
from infd.models.autoencoder import Autoencoder
from infd.models.denoiser import Denoiser

SMALL = AutoencoderConfig(widths=(8, 16), blocks=1, mid_attention=False, z_dim=2, quantizer="kl", renderer_dim=8, norm_groups=4)
DENOISER = DenoiserConfig(widths=(8, 16), blocks=1, head_dim=8, norm_groups=4, z_dim=2)


def awake(denoiser: Denoiser) -> Denoiser:
    """With random weights everywhere: it begins with zeros that would hide what it does."""
    for parameter in denoiser.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return denoiser


def stage_two(folder: Path) -> str:
    """A stage-two checkpoint; none of the denoiser's weights is 0, with which it would begin."""
    torch.manual_seed(0)
    config = DiffusionTrainingConfig(model=DENOISER, loop=LoopConfig(steps=1, batch=1))
    denoiser, autoencoder = awake(Denoiser(config.model)), Autoencoder(SMALL)
    tensors = {f"{name}.{key}": value for name, part in (("denoiser", denoiser), ("autoencoder", autoencoder))
               for key, value in part.state_dict().items()}
    checkpoint.save(str(folder), model=tensors, train_state={}, meta={
        "stage": "latent_diffusion", "step": 1, "config": flat(config), "metrics": {}, "groups": ["a"],
        "autoencoder": {"config": flat(SMALL), "lowres_px": 32, "patch_px": 32}})
    return str(folder)
