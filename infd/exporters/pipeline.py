"""A stage-two checkpoint of ours as a folder that diffusers' `DiffusionPipeline.from_pretrained` loads (`LDMPipeline`).

    model_index.json                        written last: without it the folder does not load
    scheduler/scheduler_config.json         DDIMScheduler, or FlowMatchEulerDiscreteScheduler for a flow
    unet/config.json, diffusion_pytorch_model.safetensors
                                            UNet2DModel, or UNet2DConditionModel where a caption conditions it
    unet/no_caption.safetensors             captions alone: what stands for none, (1, K)
    vqvae/…                                 E, Q, D and R, as `exporters.autoencoder` writes them
    README.md                               the model card

`vqvae` is LDMPipeline's name for an autoencoder of either kind. Its own call knows neither a condition nor a flow; with
one of these the components load all the same, and the card shows the loop that samples.
Laws: the loaded denoiser gives what ours gives, and the loaded scheduler leads the same noises to the same latents.
"""

import json
import logging
from typing import Any

import safetensors.torch
import torch

from infd.checkpoint import Checkpoint
from infd.compat import torchvision_ready
from infd.config import DenoiserConfig
from infd.diffusion import samplers
from infd.errors import ConfigError
from infd.exporters.autoencoder import CARD, CONFIG, WEIGHTS, component, numbers, require_place
from infd.exporters.pipeline_card import pipeline_card
from infd.generation.model import Model, load_model
from infd.models.denoiser import unet

logger = logging.getLogger(__name__)

INDEX, SCHEDULER, NO_CAPTION = "model_index.json", "scheduler/scheduler_config.json", "unet/no_caption.safetensors"
CLASS_NAME = "LDMPipeline"


def contents(
    found: Checkpoint, *, licence: str, scaling_factor: float | None, replicate_padding: bool,
) -> dict[str, bytes]:
    """The files of a stage-two checkpoint, the last to be written last. Raises CheckpointError, ConfigError."""
    if scaling_factor is not None:
        raise ConfigError(f"scaling_factor={scaling_factor}: checkpoint {found.uri} is of stage two, whose diffusion.scale "
                          "says by what its latents are divided; leave --scaling-factor out")
    model = load_model(found.uri)
    config = model.autoencoder.config
    require_place(config, found.uri, replicate_padding=replicate_padding)
    notes: dict[str, object] = {"scaling_factor": 1 / model.diffusion.scale}
    autoencoder_class, vqvae = component(
        config, model.autoencoder.state_dict(), lowres_px=model.autoencoder.lowres_px or 0, notes=notes)
    unet_class, denoiser = denoiser_component(model)
    scheduler = samplers.scheduler(model.diffusion, "euler" if model.diffusion.objective == "flow" else "ddim")
    files = {**{f"vqvae/{name}": data for name, data in vqvae.items()}, **denoiser,
             SCHEDULER: scheduler.to_json_string().encode()}
    classes = {"vqvae": autoencoder_class, "unet": unet_class, "scheduler": type(scheduler).__name__}
    card = pipeline_card(found.meta, model, classes=classes, licence=licence, notes=notes, files=files)
    return {**files, CARD: card.encode(), INDEX: index(classes)}


def denoiser_component(model: Model) -> tuple[str, dict[str, bytes]]:
    """Name of diffusers' class of the denoiser, and its files."""
    config = model.denoiser.config
    class_name, config_json = unet_config(config, side=model.side)
    tensors = model.denoiser.net.state_dict()
    logger.info("%s of %d numbers", class_name, numbers(tensors))
    files = {f"unet/{WEIGHTS}": safetensors.torch.save(tensors, metadata={"format": "pt"}), f"unet/{CONFIG}": config_json}
    if config.condition == "text":
        none = {"no_caption": model.denoiser.no_caption.data}
        files[NO_CAPTION] = safetensors.torch.save(none, metadata={"format": "pt"})
    return class_name, files


def unet_config(config: DenoiserConfig, *, side: int) -> tuple[str, bytes]:
    """Class and config.json of diffusers' network for latents of `side`; takes no memory."""
    with torch.device("meta"):
        network: Any = unet(config)
    network.register_to_config(sample_size=side)
    return type(network).__name__, network.to_json_string().encode()


def index(classes: dict[str, str]) -> bytes:
    """model_index.json: the pipeline's class, and the class of each part."""
    torchvision_ready()
    import diffusers

    parts = {name: ["diffusers", class_name] for name, class_name in sorted(classes.items())}
    about = {"_class_name": CLASS_NAME, "_diffusers_version": diffusers.__version__}
    return (json.dumps({**about, **parts}, indent=2) + "\n").encode()
