"""Both stages as one model: a seed becomes a latent, a latent becomes a field, a field renders at any size.

    model = infd.load_model("RUN/checkpoints/best")
    field = model.sample(seed=7, steps=25)
    field.save("portrait.png", 3000, 2000)
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from infd import checkpoint
from infd.checkpoint import Checkpoint
from infd.config import AutoencoderConfig, DenoiserConfig, DiffusionConfig, require
from infd.config_form import unflat
from infd.diffusion import samplers
from infd.diffusion.samplers import Sampler
from infd.errors import ConfigError
from infd.generation.load import config_of, denoiser_config
from infd.generation.registry import resolve
from infd.generation.render import Picture
from infd.models.autoencoder import Autoencoder
from infd.models.denoiser import Denoiser


@dataclass(frozen=True, eq=False)
class Model:
    """An autoencoder and a denoiser of its latents, in eval mode, on one device."""

    autoencoder: Autoencoder
    denoiser: Denoiser
    diffusion: DiffusionConfig
    uri: str = ""
    sha256: str = ""
    """Of the checkpoint's weights: it goes into every image."""
    groups: tuple[str, ...] = ()
    """Names of the classes, where the denoiser has some."""

    @property
    def side(self) -> int:
        """l, the side of z that the denoiser was trained at."""
        return (self.autoencoder.lowres_px or 0) // self.autoencoder.config.factor

    @property
    def device(self) -> torch.device:
        return next(self.denoiser.parameters()).device

    def sample(self, seed: int, **how: Any) -> Picture:
        """The field of one seed; `how` as `latents` takes it. Its files carry the seed, the model and how it was drawn."""
        field = self.field(self.latents([seed], **how))
        plain = {name: value for name, value in how.items() if isinstance(value, str | int | float)}
        field.about = {"seed": str(seed), "model": self.uri, "model_sha256": self.sha256,
                       "config": json.dumps(plain, sort_keys=True)}
        return field

    def latents(
        self, seeds: Sequence[int], *, steps: int = 50, sampler: Sampler | None = None, eta: float = 1.0,
        guidance: float = 1.0, group: str | Sequence[str] = "", context: Tensor | None = None, **more: Any,
    ) -> Tensor:
        """z (B, Z, l, l), one for each seed. Law: each depends on its own seed alone, but for rounding.

        sampler: empty: ddim, or heun for a flow; the published way is ddim, 200 steps, eta 1. group: the class to draw
        from, one for all or one for each; context (S, K) or (B, S, K): the embedding of a caption; guidance above 1
        exaggerates either. Raises ConfigError.
        """
        sampler = sampler or default_sampler(self.diffusion)
        require_sampling(self.denoiser.config, self.diffusion, self.groups, steps=steps, sampler=sampler, guidance=guidance,
                         group=group, context=context is not None)
        labels = self._labels([group] * len(seeds) if isinstance(group, str) else group) if group else None
        told = None if context is None else context.expand(len(seeds), -1, -1).to(self.device)
        return samplers.sample(self.denoiser, self.diffusion, seeds=seeds, side=self.side, steps=steps, sampler=sampler,
                               eta=eta, guidance=guidance, labels=labels, context=told, **more)

    def field(self, z: Tensor) -> Picture:
        """The field of latents."""
        with torch.no_grad():
            return Picture.of(self.autoencoder.field(z))

    def _labels(self, groups: Sequence[str]) -> Tensor:
        return torch.tensor([self.groups.index(group) for group in groups], device=self.device)


def default_sampler(diffusion: DiffusionConfig) -> Sampler:
    return "heun" if diffusion.objective == "flow" else "ddim"


def require_sampling(
    denoiser: DenoiserConfig, diffusion: DiffusionConfig, groups: Sequence[str], *, steps: int, sampler: Sampler,
    guidance: float, group: str | Sequence[str], context: bool,
) -> None:
    """Raise ConfigError for wishes that a denoiser of these classes was not trained to heed, or that no sampler can."""
    samplers.require_kind(diffusion, sampler)
    samplers.require_times(steps, sampler, samplers.times_of(diffusion))
    condition, dropped = denoiser.condition, diffusion.p_unconditional > 0
    classes = list(groups) if condition == "class" else []
    for name in ([group] if group else []) if isinstance(group, str) else group:
        if name not in classes:
            raise ConfigError(f"group={name}: the model has the classes {classes}; name one of them, or none")
    if context and condition != "text":
        raise ConfigError("context: the model has no condition on captions; leave it out")
    if condition != "none" and not dropped and not (group or context):
        wanted = "group" if condition == "class" else "context"
        raise ConfigError(f"{wanted}: missing; the model was never trained without its {condition}; give one")
    if guidance != 1.0 and (condition == "none" or not dropped):
        raise ConfigError(f"guidance={guidance:g}: must be 1; the model was trained "
                          f"{'without a condition' if condition == 'none' else 'with p_unconditional 0'}")
    if guidance != 1.0 and not (group or context):
        raise ConfigError(f"guidance={guidance:g}: must be 1 where nothing is asked for; give a "
                          f"{'group' if condition == 'class' else 'context'} too")


def load_model(uri: str, *, device: str = "cpu", weights: str = "average") -> Model:
    """The model of a stage-two checkpoint, which holds its autoencoder too.

    `uri`: a checkpoint's folder, RUN/checkpoints/last or /best, or models:/NAME@best of MLflow's registry. `weights`:
    average, where the run had one, or last.
    Raises CheckpointError.
    """
    require(weights in ("average", "last"), "weights", weights, "expected average or last")
    found = checkpoint.load(resolve(uri))
    denoiser = Denoiser(denoiser_config(found))
    tensors = (found.model("denoiser_average.") if weights == "average" else {}) or found.model("denoiser.")
    checkpoint.put_into(f"checkpoint {found.uri}", denoiser, tensors)
    return Model(
        autoencoder=autoencoder_beside(found, device=device), denoiser=denoiser.to(device).eval().requires_grad_(False),
        diffusion=config_of(found, DiffusionConfig, "diffusion."), uri=found.uri,
        sha256=found.files[checkpoint.MODEL]["sha256"], groups=tuple(found.meta["groups"]))


def autoencoder_beside(found: Checkpoint, *, device: str = "cpu") -> Autoencoder:
    """The autoencoder that a stage-two checkpoint holds."""
    facts = found.meta["autoencoder"]
    autoencoder = Autoencoder(unflat(AutoencoderConfig, facts["config"]))
    checkpoint.put_into(f"checkpoint {found.uri}", autoencoder, found.model("autoencoder."))
    autoencoder.lowres_px = int(facts["lowres_px"])
    autoencoder.patch_px = int(facts["patch_px"])
    return autoencoder.to(device).eval().requires_grad_(False)
