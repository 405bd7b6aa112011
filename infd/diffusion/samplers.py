"""From noise to latents: the library's schedulers over a denoiser, with a seed for each image.

The published way is `ddim`, 200 steps, eta 1, no clipping; its steps are t = 995, 990, …, 0 (leading, no offset).
Source: INFD as published; Song et al. 2021 (DDIM); Lu et al. 2022 (DPM-Solver++); Zhao et al. 2023 (UniPC).
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from infd.compat import torchvision_ready
from infd.config import DiffusionConfig
from infd.errors import ConfigError
from infd.models.denoiser import Denoiser

Sampler = Literal["ddpm", "ddim", "dpm", "unipc", "euler", "heun"]
FLOWS = ("euler", "heun")
"""Samplers of a flow; the others are of discrete diffusion."""


def scheduler(config: DiffusionConfig, sampler: Sampler) -> Any:
    """diffusers' scheduler for this process. Raises ConfigError for one that is not of its kind."""
    require_kind(config, sampler)
    torchvision_ready()
    import diffusers

    library: Any = diffusers                                       # its exports are lazy, so no checker sees them
    if sampler == "euler":
        return library.FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000)
    if sampler == "heun":
        return library.FlowMatchHeunDiscreteScheduler(num_train_timesteps=1000)
    process = {
        "num_train_timesteps": config.timesteps, "beta_start": config.beta_from, "beta_end": config.beta_to,
        "beta_schedule": config.schedule, "prediction_type": {"eps": "epsilon", "v": "v_prediction"}[config.objective]}
    if sampler == "ddpm":
        return library.DDPMScheduler(**process, clip_sample=False, timestep_spacing="leading", steps_offset=0)
    if sampler == "ddim":
        return library.DDIMScheduler(**process, clip_sample=False, set_alpha_to_one=True, timestep_spacing="leading",
                                       steps_offset=0)
    if sampler == "dpm":
        return library.DPMSolverMultistepScheduler(**process, algorithm_type="dpmsolver++", solver_order=2)
    return library.UniPCMultistepScheduler(**process)


def sample(
    denoiser: Denoiser, config: DiffusionConfig, *, seeds: Sequence[int], side: int, **how: Any,
) -> Tensor:
    """Latents (B, Z, side, side) float32, one for each seed, on the denoiser's device; for `Autoencoder.field`.

    `how`: as `denoised` takes it. Law: an image depends on its seed and not on its neighbours in the batch, but for
    rounding; all randomness comes from CPU generators, so devices agree too.
    """
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    shape = (denoiser.config.z_dim, side, side)
    start = torch.stack([torch.randn(shape, generator=generator) for generator in generators])
    return denoised(denoiser, config, start, generators=generators, **how)


@torch.no_grad()
def denoised(
    denoiser: Denoiser, config: DiffusionConfig, start: Tensor, *, generators: list[torch.Generator], steps: int = 200,
    sampler: Sampler = "ddim", eta: float = 1.0, guidance: float = 1.0, labels: Tensor | None = None,
    context: Tensor | None = None, told: Callable[[int, Tensor], object] = lambda step, z: None,
) -> Tensor:
    """Noise (B, Z, l, l) -> latents. `generators` give what is drawn on the way, one for each image.

    `guidance` above 1 leads away from the unconditional prediction; labels (B,), context (B, S, K) as the denoiser takes
    them. `told` sees the number of each finished step and its z.
    """
    device = next(denoiser.parameters()).device
    require_times(steps, sampler, times_of(config))
    steps_of = scheduler(config, sampler)
    steps_of.set_timesteps(steps, device=device)
    z = start.to(device) * getattr(steps_of, "init_noise_sigma", 1.0)
    extra: dict[str, Any] = {"eta": eta} if sampler == "ddim" else {}
    if "generator" in inspect.signature(steps_of.step).parameters:
        extra["generator"] = generators
    for number, t in enumerate(steps_of.timesteps, 1):
        scaled = steps_of.scale_model_input(z, t) if hasattr(steps_of, "scale_model_input") else z
        said = guided(denoiser, scaled, t.expand(len(z)), guidance, labels, context)
        z = steps_of.step(said, t, z, **extra).prev_sample
        told(number, z)
    return z * config.scale


def require_kind(config: DiffusionConfig, sampler: Sampler) -> None:
    """Raise ConfigError for a sampler of another kind of process."""
    if (sampler in FLOWS) != (config.objective == "flow"):
        fit = [name for name in get_args(Sampler) if (name in FLOWS) == (config.objective == "flow")]
        raise ConfigError(f"sampler={sampler}: the denoiser's objective is {config.objective}; use {' or '.join(fit)}")


def times_of(config: DiffusionConfig) -> int:
    """How many times the denoiser was trained at; of a flow, those of the library's schedulers."""
    return 1000 if config.objective == "flow" else config.timesteps


def require_times(steps: int, sampler: Sampler, most: int) -> None:
    """Raise ConfigError for a number of steps whose times are not a path from noise to an image.

    The library spaces ddim's and ddpm's times by `most // steps` from 0 on: 600 of 1000 steps would begin at t = 599, where
    the denoiser never saw pure noise. dpm and unipc repeat a time, and divide by 0, with as many steps as times.
    """
    if not 1 <= steps <= most:
        raise ConfigError(f"steps={steps}: must lie in 1 to {most}, the times that the denoiser was trained at")
    if sampler in ("dpm", "unipc") and steps == most:
        raise ConfigError(f"steps={steps}: {sampler} takes at most {most - 1}, so that no time comes twice; 15 to 30 do")
    if sampler in ("ddim", "ddpm") and not reaches_noise(steps, most):
        near = [next(filter(lambda count: reaches_noise(count, most), counts))
                for counts in (range(steps, 0, -1), range(steps, most + 1))]
        raise ConfigError(f"steps={steps}: {sampler} would begin at time {(steps - 1) * (most // steps)} of {most}, no pure "
                          f"noise; take {near[0]} or {near[1]}")


def reaches_noise(steps: int, most: int) -> bool:
    """Whether times `most // steps` apart cover 85% of all; what lies above them is noise but for a hundredth."""
    return steps * (most // steps) >= 0.85 * most


def guided(denoiser: Denoiser, z: Tensor, t: Tensor, guidance: float, labels: Tensor | None, context: Tensor | None) -> Tensor:
    """The denoiser's word, led away from its unconditional one. Source: Ho and Salimans 2022, equation 6."""
    said = denoiser(z, t, labels, context).float()
    if guidance == 1.0 or denoiser.config.condition == "none":
        return said
    plain = denoiser(z, t).float()
    return plain + guidance * (said - plain)
