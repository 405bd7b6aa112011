"""The model card of an exported pipeline: how z is sampled with diffusers' parts and rendered with ours, and the rest.

Its code is one for all models, but for the condition and the kind of process; a test runs it as it stands.
"""

from collections.abc import Mapping
from typing import Any

from infd.config_form import flat
from infd.exporters.autoencoder import clif_arguments
from infd.exporters.card import (
    PADDING_NOTE,
    code,
    config_text,
    data_text,
    files_text,
    header,
    licence_text,
    metrics_text,
    padding_lines,
)
from infd.generation.model import Model

TAGS = ("image-neural-field", "latent-diffusion", "arbitrary-resolution", "infd")
STEPS, SEED = 50, 7
"""What the card's code samples with."""

USE = '''\
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file

from infd.models.fields import Field
from infd.models.renderers.clif import CLIF{import_padding}

folder = "."                                          # where this card lies
pipe = DiffusionPipeline.from_pretrained(folder)      # of {vqvae}, {unet}, {scheduler}
unet, vqvae, scheduler = pipe.unet, pipe.vqvae, pipe.scheduler
{padding}decoder = vqvae.decoder                               # its last three layers were never trained: take them off
decoder.conv_norm_out = decoder.conv_act = decoder.conv_out = torch.nn.Identity()
renderer = CLIF({clif})
renderer.load_state_dict(load_file(f"{{folder}}/vqvae/renderer.safetensors"))
{condition}
generator = torch.Generator().manual_seed({seed})
z = torch.randn(1, {z_dim}, {side}, {side}, generator=generator)
scheduler.set_timesteps({steps})
with torch.no_grad():
    for t in scheduler.timesteps:
        said = unet(z, t{seen}).sample
        z = scheduler.step(said, t, z{step}).prev_sample
    z = z / vqvae.config.scaling_factor               # times {scale:.6g}: from the denoiser's scale to the decoder's
    phi = vqvae.decode(z).sample                      # (1, {phi_dim}, {lowres_px}, {lowres_px}): features, not colours
    field = Field(phi, renderer, patch_px={patch_px})       # the side of what R's norms saw at once in training
    image = field.render(384, 256)                    # (1, 3, 384, 256), about [-1, 1], at any size
'''

CALL = '''
diffusers' own loop does it too, once the renderer stands where the decoder's last layer was:

```python
class Rendered(torch.nn.Module):
    def forward(self, phi):
        return Field(phi, renderer, patch_px={patch_px}).render(384, 256)


decoder.conv_out = Rendered()
picture = pipe(generator=torch.Generator().manual_seed({seed}), eta=0.0, num_inference_steps={steps}).images[0]
```
'''

NO_CALL = '''
`pipe(…)` itself does not work with this model: `LDMPipeline` knows no {lacks}. Use the loop above.
'''

CONDITIONS = {
    "none": "It has no condition.",
    "class": '''\
It was trained with a class for each image, which goes into `unet` as `class_labels`: {classes}.
{none} stands for none''',
    "text": '''\
It was trained with the embedding of a caption, (S, {context_dim}), which goes into `unet` as `encoder_hidden_states`; the
network that embeds captions is not in this folder. `unet/no_caption.safetensors` holds what stands for none''',
}
DROPPED = """: it was left out of {share:.3g} of the samples, so
`none + g * (with - none)` of the two outputs, g above 1, exaggerates it (classifier-free guidance)."""
NEVER_DROPPED = ", but it was never left out in training: `unet` does not know what to do with none."

CARD = '''\
---
{header}
---

# Image neural field diffusion

A denoiser of latents, and the autoencoder and renderer that make images of them. `unet` and `scheduler` turn noise into a
latent z of {side} x {side} x {z_dim}; the decoder of `vqvae` turns z into features; the renderer R
(`vqvae/renderer.safetensors`) renders the features at any size. All but R are in diffusers' layout and load with
`DiffusionPipeline.from_pretrained`.
The method is that of *Image Neural Field Diffusion Models* (Chen et al., CVPR 2024).

**`vqvae.decode` alone gives no image.** The decoder ends before the last norm and convolution of diffusers' decoder; these
two were never trained and are written as ones and zeros, so that the output of `pipe()`, too, is plain grey. Take them off,
as below, and `decode` gives the features that R renders.

**Scale.** The denoiser knows latents divided by {scale:.9g} (`diffusion.scale`). What is sampled must be multiplied by it
before it is decoded; `scaling_factor` in `vqvae/config.json` is 1 / {scale:.9g}, by which diffusers' pipelines divide.

**Condition.** {condition_note}
{types_note}{padding_note}
## Use

R needs the package `infd`.

```python
{use}```
{call}
With `infd` alone, from the checkpoint itself: `infd.load_model(CHECKPOINT).sample(seed={seed})`.

## Data

{data}

## Metrics

{metrics}

## Licence

{licences}

## Config

```
{config}
```

## Files

{files}
'''

TYPES = {"vqvae": "VQModel", "unet": "UNet2DModel"}
"""What LDMPipeline is written for."""

TYPES_NOTE = '''
**`Expected types for …`** is what diffusers logs as it loads this folder: `LDMPipeline` is written for {expected}.
{found} here, which loads and works all the same.
'''


def pipeline_card(
    meta: Mapping[str, Any], model: Model, *, classes: Mapping[str, str], licence: str, notes: Mapping[str, object],
    files: Mapping[str, bytes],
) -> str:
    """README.md of the export of a stage-two checkpoint; `classes`: diffusers' class of each part of the pipeline."""
    config = model.autoencoder.config
    replicate = config.padding == "replicate"
    return CARD.format(
        header=header(licence, tags=TAGS, fine_tuned=bool(meta.get("origin")) and bool(meta.get("step"))),
        side=model.side, z_dim=config.z_dim, scale=model.diffusion.scale, seed=SEED,
        condition_note=condition_note(model), types_note=types_note(classes),
        padding_note=PADDING_NOTE if replicate else "", use=use_text(model, classes), call=call_text(model),
        data=f"{data_text(meta)}\n\n{autoencoder_text(meta['autoencoder'])}", metrics=metrics_text(meta),
        licences=licences_text(meta, licence),
        config=config_text({**meta["config"], **{f"autoencoder.{name}": value for name, value in flat(config).items()}}),
        files=files_text(meta, notes, model.sha256, files))


def use_text(model: Model, classes: Mapping[str, str]) -> str:
    """The code that samples z with diffusers' parts and renders it with ours."""
    config, denoiser = model.autoencoder.config, model.denoiser.config
    condition, seen = {
        "none": ("", ""),
        "class": (f"label = torch.tensor([{denoiser.classes if model.diffusion.p_unconditional else 0}])" + " " * 26
                  + "# of a class, as numbered above, or of none\n", ", class_labels=label"),
        "text": ('context = load_file(f"{folder}/unet/no_caption.safetensors")["no_caption"][None]'
                 "  # or a caption's (1, S, K)\n", ", encoder_hidden_states=context"),
    }[denoiser.condition]
    step = "" if model.diffusion.objective == "flow" else ", eta=1.0, generator=generator"
    import_padding, padding = padding_lines("vqvae", replicate=config.padding == "replicate")
    return USE.format(
        **classes, import_padding=import_padding, padding=padding, condition=condition, seen=seen, step=step, seed=SEED,
        steps=STEPS, clif=", ".join(f"{name}={value}" for name, value in clif_arguments(config).items()),
        z_dim=config.z_dim, side=model.side, scale=model.diffusion.scale, phi_dim=config.phi_dim,
        lowres_px=model.autoencoder.lowres_px, patch_px=model.autoencoder.patch_px)


def call_text(model: Model) -> str:
    """How diffusers' own loop does it; or that it does not."""
    lacks = [word for word, has in (("condition", model.denoiser.config.condition != "none"),
                                    ("flow", model.diffusion.objective == "flow")) if has]
    return NO_CALL.format(lacks=" and no ".join(lacks)) if lacks else CALL.format(
        seed=SEED, steps=STEPS, patch_px=model.autoencoder.patch_px)


def types_note(classes: Mapping[str, str]) -> str:
    """What diffusers says of parts that are of another class than its pipeline names."""
    other = [name for name in TYPES if classes[name] != TYPES[name]]
    return TYPES_NOTE.format(
        expected=" and ".join(f"a {TYPES[name]} as `{name}`" for name in other),
        found=" and ".join(f"`{name}` is of {classes[name]}" for name in other)) if other else ""


def condition_note(model: Model) -> str:
    config = model.denoiser.config
    classes = ", ".join(f"{number} {code(name)}" for number, name in enumerate(model.groups))
    note = CONDITIONS[config.condition].format(classes=classes, none=config.classes, context_dim=config.context_dim)
    if config.condition == "none":
        return note
    return note + (DROPPED.format(share=share) if (share := model.diffusion.p_unconditional) else NEVER_DROPPED)


def autoencoder_text(facts: Mapping[str, Any]) -> str:
    """Which autoencoder made the latents."""
    if "sha256" not in facts:
        return "The autoencoder came with it."
    trained = f", trained for {facts['step']:,} steps" if "step" in facts else ""
    return (f"The latents are those of the autoencoder in `vqvae`{trained}: of checkpoint {code(facts['checkpoint'])}, whose "
            f"model.safetensors has the sha256 `{facts['sha256']}`.")


def licences_text(meta: Mapping[str, Any], licence: str) -> str:
    """The terms of the denoiser and of the autoencoder beside it."""
    beside = meta["autoencoder"].get("origin", {})
    origin = {**meta.get("origin", {}), **{f"autoencoder: {name}": value for name, value in beside.items()}}
    fresh = "The denoiser started from random weights; what the autoencoder started from stands in its own checkpoint."
    return licence_text({**meta, "origin": origin}, licence, fresh=fresh)
