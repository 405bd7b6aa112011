"""The named settings: each preset is a function that returns a full config. Standard library only."""

import difflib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from infd.config import (
    AutoencoderConfig,
    AutoencoderTrainingConfig,
    ConfigT,
    CropConfig,
    DenoiserConfig,
    DiffusionConfig,
    DiffusionTrainingConfig,
    DiscriminatorConfig,
    LoopConfig,
    LossConfig,
    OptimizerConfig,
    ReconstructionConfig,
    SamplesConfig,
)
from infd.config_form import flat, unflat
from infd.errors import ConfigError


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
            steps=2000, batch=4, channels_last=True, log_every=25, checkpoint_every=250, keep_every=2000,
            validate_every=250, validate_samples=32, preview_every=1000, preview_photos=2, preview_px=512),
    )


def small() -> AutoencoderTrainingConfig:
    """One GPU, an hour: 14.5 M parameters and a discriminator of 2.8 M, lowres 256, patches of 128, sides 128 to 1024.

    A quarter of the samples are whole views, and the latent has a KL of tiny weight, for the reasons of `tiny`.
    """
    return AutoencoderTrainingConfig(
        model=AutoencoderConfig(widths=(64, 128, 256), z_dim=4, quantizer="kl", renderer_dim=128, padding="replicate"),
        crop=CropConfig(patch_px=128, lowres_px=256, r_min=128, r_max=1024, p_whole=0.25),
        loss=LossConfig(quantizer=1e-6, gan_from_step=15_001),
        optimizer=OptimizerConfig(lr=2e-4, warmup_steps=500, decay_from_step=20_000, decay_to_step=30_000),
        loop=LoopConfig(
            steps=30_000, batch=16, precision="bfloat16", compiled=True, log_every=50, checkpoint_every=2_500,
            keep_every=30_000, validate_every=2_500, validate_samples=128, preview_every=2_500),
        evaluation=ReconstructionConfig(every=10_000),
    )


def ffhq_1024() -> AutoencoderTrainingConfig:
    """The paper's FFHQ model: VQ-f4, sides 256 to 1024, batch 8, a million steps (4 days on four A100).

    Source: INFD supplement J.1, J.2; published configuration ae_ffhq. 60,000 photographs train, 10,000 validate.
    """
    return AutoencoderTrainingConfig(
        model=AutoencoderConfig(),
        crop=CropConfig(),
        loop=LoopConfig(steps=1_000_000, batch=8),
        evaluation=ReconstructionConfig(every=50_000, photos=256, sizes=(256, 512)),
    )


def ffhq_6k_mix() -> AutoencoderTrainingConfig:
    """The paper's 6K-Mix: 70,000 faces at 256 and 6,000 at 512 to 1024, half of the samples of each.

    jobs/prepare_ffhq_6k_mix.py makes them by the published subset rule; they are ingested with the groups lr and hr. r ends
    at a photo's own side. The published run holds nothing out and never validates. Source: INFD section 5; published
    configuration ae_ffhq-mix6000.
    """
    base = ffhq_1024()
    return replace(base, crop=replace(base.crop, balance_group="hr", balance_p=0.5))


def mountains_2k() -> AutoencoderTrainingConfig:
    """The paper's Mountains: 500,000 photographs around 1024 and 9,000 beyond 2048, large sides late.

    Source: INFD section 5, supplement J.2 (a million steps; in the last 400,000 half of the samples are at native r);
    counts: AnyRes-GAN table 1. The paper states neither r nor a balance: r ends at 2048, the largest side it shows, so larger
    photographs (median 3168) are seen at 2048 where the paper has native r, and photographs are drawn evenly.
    """
    base = ffhq_1024()
    return replace(base, crop=replace(base.crop, r_max=2048, p_max_late=0.5, late_from_step=600_001))


def laion_2k() -> AutoencoderTrainingConfig:
    """The paper's text-to-image model: Stable Diffusion's KL-f8 with E frozen, D tuned, CLIF fresh; lowres 512.

    Needs `--start-from`, a folder that jobs/import_weights.py --from sd-vae wrote. Source: INFD section 5.6, supplement
    J.2; the weight of the divergence is that of Stable Diffusion, and has no effect while E is frozen. lowres follows
    from the latent of 64²; r ends at 2048, the least side of the photographs.
    """
    base = mountains_2k()
    return replace(
        base, freeze=("encoder",),
        model=AutoencoderConfig(widths=(128, 256, 512, 512), z_dim=4, quantizer="kl"),
        crop=replace(base.crop, lowres_px=512),
        loss=LossConfig(quantizer=1e-6))


def ldm_tiny() -> DiffusionTrainingConfig:
    """Two CPU cores, minutes: 2 M parameters for the latents of `tiny` (4 x 32 x 32), v prediction.

    Mirrored views double what few photographs there are; scale 0 takes the latents' own, whose size no KL of tiny weight
    fixes.
    """
    return DiffusionTrainingConfig(
        model=DenoiserConfig(z_dim=4, widths=(32, 64, 96), blocks=1, head_dim=32, norm_groups=8),
        diffusion=DiffusionConfig(objective="v", scale=0, min_snr_gamma=5.0),
        optimizer=OptimizerConfig(lr=1e-3, betas=(0.9, 0.99), weight_decay=0.01, ema_decay=0.995, warmup_steps=50,
                                  decay_from_step=450, decay_to_step=900, clip_norm=1.0),
        loop=LoopConfig(steps=900, batch=8, channels_last=True, log_every=50, checkpoint_every=300, keep_every=900,
                        validate_every=300, validate_samples=32, preview_every=450, preview_photos=2),
        flip=True, preview_steps=25)


def ldm_small() -> DiffusionTrainingConfig:
    """One GPU, an hour: 90 M parameters for the latents of `small` (4 x 64 x 64), v prediction."""
    return DiffusionTrainingConfig(
        model=DenoiserConfig(z_dim=4, widths=(128, 256, 384, 512), blocks=2),
        diffusion=DiffusionConfig(objective="v", scale=0, min_snr_gamma=5.0),
        optimizer=OptimizerConfig(lr=2e-4, betas=(0.9, 0.99), weight_decay=0.01, ema_decay=0.9995, warmup_steps=500,
                                  decay_from_step=30_000, decay_to_step=50_000, clip_norm=1.0),
        loop=LoopConfig(steps=50_000, batch=64, precision="bfloat16", compiled=True, channels_last=True, log_every=100,
                        checkpoint_every=5_000, keep_every=50_000, validate_every=5_000, preview_every=5_000),
        evaluation=SamplesConfig(every=10_000), flip=True)


def ldm_ffhq_1024() -> DiffusionTrainingConfig:
    """The paper's FFHQ model: 274 M parameters on 3 x 64 x 64, batch 48, 600,000 steps.

    Source: INFD supplement J.1, J.2; published configuration dm_ffhq.
    """
    return DiffusionTrainingConfig(loop=LoopConfig(steps=600_000, batch=48), evaluation=SamplesConfig(every=50_000))


def ldm_ffhq_6k_mix() -> DiffusionTrainingConfig:
    """The paper's 6K-Mix: as FFHQ, on all 70,000 faces; it holds none out. Source: INFD supplement J.2."""
    return ldm_ffhq_1024()


def ldm_mountains_2k() -> DiffusionTrainingConfig:
    """The paper's Mountains: as FFHQ, 1.7 million steps. Source: INFD supplement J.2."""
    return replace(ldm_ffhq_1024(), loop=LoopConfig(steps=1_700_000, batch=48))


DIFFUSION: dict[str, Callable[[], DiffusionTrainingConfig]] = {
    preset.__name__.removeprefix("ldm_"): preset
    for preset in (ldm_tiny, ldm_small, ldm_ffhq_1024, ldm_ffhq_6k_mix, ldm_mountains_2k)}
"""Presets of `jobs/train_ldm.py`."""

AUTOENCODER: dict[str, Callable[[], AutoencoderTrainingConfig]] = {
    preset.__name__: preset for preset in (tiny, small, ffhq_1024, ffhq_6k_mix, mountains_2k, laion_2k)}
"""Presets of `jobs/train_ae.py`."""


def from_file(path: str, presets: dict[str, Callable[[], ConfigT]]) -> tuple[str, ConfigT]:
    """A preset of one's own: its name and config, from a JSON object of dotted fields over the preset `base`.

        {"base": "ffhq_1024", "crop.r_max": 4096, "loop.batch": 16}

    Raises ConfigError naming the file and what is wrong in it.
    """
    try:
        with open(path, encoding="utf-8") as file:
            told = json.load(file)
    except (OSError, ValueError) as error:
        raise ConfigError(f'{path}: {error}; expected a JSON object such as {{"base": "tiny", "loop.steps": 100}}') from error
    base = told.pop("base", None) if isinstance(told, dict) else None
    if base not in presets:
        raise ConfigError(f"{path}: base={base}: expected one of {', '.join(presets)}, and dotted fields beside it")
    preset = presets[base]()
    try:
        return Path(path).stem, unflat(type(preset), {**flat(preset), **told})
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def require_known(words: Sequence[str], presets: Iterable[str]) -> None:
    """Raise ConfigError where the first word of a command is no option and no preset, naming the nearest one."""
    if words and not words[0].startswith("-") and words[0] not in (names := list(presets)):
        near = difflib.get_close_matches(words[0], names, n=1)
        raise ConfigError(f"{words[0]}: no such preset; expected {', '.join(names)}, or a .json file of your own"
                          + (f"; did you mean {near[0]}?" if near else "; name one"))
