"""The named settings: each preset is a function that returns a full config. Standard library only."""

from collections.abc import Callable

from infd.config import (
    AutoencoderConfig,
    AutoencoderTrainingConfig,
    CropConfig,
    DiscriminatorConfig,
    LoopConfig,
    LossConfig,
    OptimizerConfig,
)


def tiny() -> AutoencoderTrainingConfig:
    """Two CPU cores, minutes: 0.1 M parameters, lowres 64, patches of 48, sides 48 to 512.

    Half of the samples are whole views, without which colours come late. Widths, rate, padding and the KL of tiny
    weight were measured on 29 photographs: docs/benchmarks.md, docs/log.md.
    """
    return AutoencoderTrainingConfig(
        model=AutoencoderConfig(
            widths=(16, 16), blocks=1, mid_attention=False, z_dim=4, quantizer="kl", renderer_dim=32,
            norm_groups=8, padding="replicate"),
        discriminator=DiscriminatorConfig(base_dim=16, layers=2),
        crop=CropConfig(patch_px=48, lowres_px=64, r_min=48, r_max=512, p_whole=0.5),
        loss=LossConfig(lpips=0.1, lpips_net="alex", quantizer=1e-6, gan=0.1, gan_from_step=1701),
        optimizer=OptimizerConfig(lr=2e-3, warmup_steps=50, decay_from_step=1000, decay_to_step=2000),
        loop=LoopConfig(
            steps=2000, batch=4, log_every=25, checkpoint_every=250, keep_every=2000,
            validate_every=250, validate_samples=32, preview_every=1000, preview_photos=2, preview_px=512),
    )


def ffhq_1024() -> AutoencoderTrainingConfig:
    """The paper's FFHQ model: VQ-f4, sides 256 to 1024, batch 8, a million steps (4 days on four A100).

    Source: INFD supplement J.1, J.2; published configuration ae_ffhq.
    """
    return AutoencoderTrainingConfig(
        model=AutoencoderConfig(),
        crop=CropConfig(),
        loop=LoopConfig(steps=1_000_000, batch=8),
    )


AUTOENCODER: dict[str, Callable[[], AutoencoderTrainingConfig]] = {"tiny": tiny, "ffhq_1024": ffhq_1024}
"""Presets of `jobs/train_ae.py`."""
