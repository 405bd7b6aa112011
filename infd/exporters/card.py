"""The model card of an exported checkpoint: what it is, how to use it, what it was made from, and on what terms.

The YAML header is what model hubs read; JSON strings in it are YAML too, so nothing in it can break out of its line.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from infd.config import AutoencoderConfig
from infd.config_form import seen_px

NOT_STATED = "not stated"
TAGS = ("image-neural-field", "autoencoder", "arbitrary-resolution", "infd")

USE = '''\
import torch
from diffusers import {class_name}
from safetensors.torch import load_file

from infd.models.fields import Field
from infd.models.renderers.clif import CLIF{import_padding}

folder = "."                                          # where this card lies
model = {class_name}.from_pretrained(folder).eval()
{padding}decoder = model.decoder                               # its last three layers were never trained: take them off
decoder.conv_norm_out = decoder.conv_act = decoder.conv_out = torch.nn.Identity()
renderer = CLIF({clif})
renderer.load_state_dict(load_file(f"{{folder}}/renderer.safetensors"))

lowres = torch.zeros(1, 3, {side}, {side})                # an RGB image in [-1, 1]
with torch.no_grad():
    z = model.encode(lowres).{latent}
    phi = model.decode(z).sample                      # (1, {phi_dim}, {side}, {side}): features, not colours
    field = Field(phi, renderer, patch_px={patch_px})       # the side of what R's norms saw at once in training
    image = field.render(384, 256)                    # (1, 3, 384, 256), about [-1, 1], at any size
'''

CARD = '''\
---
{header}
---

# Image neural field autoencoder

An encoder E, a decoder D and a renderer R. E turns an image of {side} x {side} pixels into a latent of {latent_sides};
D turns the latent into features; R renders the features at any size. E and D are in diffusers' layout (`{class_name}`),
R lies in `renderer.safetensors`. The method is that of *Image Neural Field Diffusion Models* (Chen et al., CVPR 2024).

**`{class_name}.decode` alone gives no image.** D ends before the last norm and convolution of diffusers' decoder; these
two were never trained and are written as ones and zeros, so that the output is plain grey. Take them off, as below, and
`decode` gives the features that R renders. E is complete: `encode` needs nothing else.
{padding_note}
## Use

R needs the package `infd`.

```python
{use}```

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

A `scaling_factor` of 1 means that nobody has measured the latents' deviation.
'''

PADDING_NOTE = '''
**Padding.** This model was trained with convolutions that repeat the border; diffusers' pad with zeros, and no setting of
theirs says otherwise. Without the line `replicate_padding` below, latents and renders differ near the border.
'''


def model_card(
    meta: Mapping[str, Any], config: AutoencoderConfig, *, class_name: str, licence: str, clif: Mapping[str, int],
    notes: Mapping[str, object], checkpoint_sha256: str, files: Mapping[str, bytes],
) -> str:
    """README.md of the export of a checkpoint whose meta.json is `meta`; `files` are the others that lie beside it."""
    side, replicate = int(meta["config"]["crop.lowres_px"]), config.padding == "replicate"
    import_padding, padding = padding_lines("model", replicate=replicate)
    use = USE.format(
        class_name=class_name, clif=", ".join(f"{name}={value}" for name, value in clif.items()), side=side,
        latent="latent_dist.mode()" if config.quantizer == "kl" else "latents", phi_dim=config.phi_dim,
        import_padding=import_padding, padding=padding, patch_px=seen_px(meta["config"]))
    return CARD.format(
        header=header(licence, fine_tuned=bool(meta.get("origin")) and bool(meta.get("step"))), side=side,
        latent_sides=f"{side // config.factor} x {side // config.factor} x {config.z_dim}", class_name=class_name,
        padding_note=PADDING_NOTE if replicate else "", use=use,
        data=data_text(meta), metrics=metrics_text(meta), licences=licence_text(meta, licence),
        config=config_text(meta["config"]), files=files_text(meta, notes, checkpoint_sha256, files))


def padding_lines(model: str, *, replicate: bool) -> tuple[str, str]:
    """The import and the line that let the parts of `model` pad as in training; both empty where diffusers does it."""
    if not replicate:
        return "", ""
    return ("\nfrom infd.models.autoencoder import replicate_padding",
            f"replicate_padding({model}.encoder), replicate_padding({model}.decoder)\n")


def config_text(config: Mapping[str, object]) -> str:
    """All fields that say what the weights are, a line each."""
    return "\n".join(f"{name} = {json.dumps(value)}" for name, value in sorted(config.items())
                     if not name.startswith("loader."))


def header(licence: str, *, tags: Iterable[str] = TAGS, fine_tuned: bool) -> str:
    """The YAML header: `license` is a hub's identifier where what was given looks like one, else `other` and its name."""
    if re.fullmatch(r"[a-z][a-z0-9.\-]*", licence.lower()):
        lines = [f"license: {json.dumps(licence.lower())}"]
    else:
        slug = re.sub(r"[^a-z0-9.]+", "-", (licence or NOT_STATED).lower()).strip("-")
        lines = ['license: "other"', f"license_name: {json.dumps(slug)}"]
    tags = [*tags, *(["fine-tuned"] if fine_tuned else [])]
    return "\n".join(["library_name: diffusers", *lines, "tags:", *(f"- {tag}" for tag in tags)])


def data_text(meta: Mapping[str, Any]) -> str:
    origin = meta.get("origin", {})
    if not meta.get("snapshot"):
        fresh = " The renderer is fresh: until it is trained, it renders noise."
        fresh = fresh if "renderer" in origin.get("fresh", ()) else ""
        return f"None: these weights were imported, not trained here.{fresh}" if origin else "Not recorded."
    return (f"Trained for {meta['step']:,} steps ({meta.get('g', 0):,} samples) on the snapshot {code(meta['snapshot'])}. "
            "The photographs keep their own licences, which the snapshot lists.")


def metrics_text(meta: Mapping[str, Any]) -> str:
    """A table of the checkpoint's metrics, but for those of the machine's speed."""
    rows = {name: value for name, value in sorted(meta.get("metrics", {}).items())
            if isinstance(value, int | float) and not name.startswith("speed/")}
    if not rows:
        return "None were measured."
    return table("metric", "value", {name: f"{value:.5g}" for name, value in rows.items()})


def licence_text(meta: Mapping[str, Any], licence: str, *, fresh: str = "They started from random weights.") -> str:
    """The terms of these weights, of those they started from (none: `fresh`), and of the networks they learned from."""
    text = f"These weights: {plain(licence or NOT_STATED)}."
    if not licence:
        text += " Whoever made them has not said; ask before you use them."
    origin = meta.get("origin", {})
    if origin:
        text += ("\n\nThey started from weights made elsewhere, whose licence may bind these too:\n\n"
                 + table("starting weights", "", {name: plain(value) for name, value in sorted(origin.items())}))
    else:
        text += f"\n\n{fresh}"
    used = meta.get("weights", {})
    if used:
        text += "\n\nThey were trained against the networks of others, which are not in these files:\n\n" + table(
            "network", "licence and origin",
            {name: f"{plain(terms.get('licence', NOT_STATED))}; {plain(terms.get('origin', NOT_STATED))}"
             for name, terms in sorted(used.items())})
    return text


def files_text(
    meta: Mapping[str, Any], notes: Mapping[str, object], checkpoint_sha256: str, files: Mapping[str, bytes],
) -> str:
    """Hashes, and what made them."""
    rows = {f"`{name}`": f"`{hashlib.sha256(data).hexdigest()}`" for name, data in sorted(files.items())}
    made = {"preset": meta.get("preset"), "identity of the config": meta.get("identity"), "step": meta.get("step"),
            "MLflow run": meta.get("mlflow_run_id"), "sha256 of the checkpoint's model.safetensors": checkpoint_sha256,
            **{f"version of {name}": version for name, version in sorted(meta.get("versions", {}).items())},
            **{f"latent: {name}": value for name, value in notes.items()}}
    return (table("file", "sha256", rows) + "\n\n"
            + table("made by", "", {name: plain(value) for name, value in made.items() if value not in (None, "")}))


def table(left: str, right: str, rows: Mapping[str, str]) -> str:
    return "\n".join([f"| {left} | {right} |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())])


def code(text: str) -> str:
    return f"`{plain(text).replace('`', '')}`"


def plain(value: object) -> str:
    """One line of text that cannot leave its cell of a table."""
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
    return " ".join(text.split()).replace("|", "\\|")
