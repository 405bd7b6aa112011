"""Tensors of the published code in a small configuration, and our networks with its weights."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import safetensors.torch
import torch
from torch import Tensor

from infd.importers import official
from infd.losses.perceptual import Lpips
from infd.models import fields
from infd.models.autoencoder import Autoencoder
from infd.models.discriminator import PatchDiscriminator

FOLDER = Path(__file__).parents[1] / "golden"
CHECKPOINT = str(FOLDER / "official_small.pth")


class Networks(NamedTuple):
    autoencoder: Autoencoder
    discriminator: PatchDiscriminator
    lpips: Lpips


def tensors(name: str) -> dict[str, Tensor]:
    """`data` or `stage_one`."""
    return safetensors.torch.load_file(FOLDER / f"{name}.safetensors")


def networks() -> Networks:
    """Fresh networks with the weights of the small published checkpoint, in train mode."""
    content = official.read(CHECKPOINT)
    found = official.autoencoder(content)
    autoencoder, discriminator = Autoencoder(found.config), PatchDiscriminator(found.discriminator)
    for network, part in ((autoencoder, "autoencoder."), (discriminator, "discriminator.")):
        network.load_state_dict({
            name.removeprefix(part): tensor for name, tensor in found.model.items() if name.startswith(part)})
    state = content["model"]["sd"]
    prefix = "perc_loss."
    lpips = Lpips.from_state_dict("vgg", {
        name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)})
    return Networks(autoencoder.train(), discriminator.train(), lpips)


def crops() -> tuple[Tensor, Tensor, Tensor]:
    """r, y, x (2,) of the golden batch."""
    data = tensors("data")
    cases = torch.stack([data["crop0.case"], data["crop1.case"]])
    return cases[:, 1], cases[:, 2], cases[:, 3]


def relative_error(found: Tensor, wanted: Tensor) -> float:
    """|found - wanted| / |wanted|."""
    if found.shape != wanted.shape:
        raise AssertionError(f"shape {tuple(found.shape)}, expected {tuple(wanted.shape)}")
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())


def published_name(autoencoder: Autoencoder, name: str) -> str:
    """The published name of one of `autoencoder`'s parameters."""
    return official.official_name(f"autoencoder.{name}", levels=len(autoencoder.config.widths))


@contextlib.contextmanager
def published_ties() -> Iterator[None]:
    """Pixels midway between two features take the even one, as the published float lookup does on the golden batch.

    Ours take the later one. A third of the golden batch's second patch sees such a pixel, so parity needs this.
    """
    ours = fields.nearest_index

    def half_even(index: Tensor, side: Tensor | int, features: int) -> Tensor:
        nearest = ours(index, side, features)
        tie = (2 * index + 1) * features % (2 * side) == 0
        return nearest - (tie & (nearest % 2 == 1)).long()

    fields.nearest_index = half_even
    try:
        yield
    finally:
        fields.nearest_index = ours
