"""Photographs through the autoencoder and back, at any size, and sheets that show them side by side."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from infd.models.autoencoder import Autoencoder
from infd.models.fields import Field

PANEL = 256
"""Side of a panel of a sheet, pixels."""
ZOOM = 4
"""A deep zoom shows the middle 1/ZOOM of the view at PANEL pixels."""


def to_tensor(image: Image.Image) -> Tensor:
    """RGB image -> (1, 3, H, W) float32 in [-1, 1]."""
    pixels = torch.from_numpy(np.array(image.convert("RGB")))
    return pixels.permute(2, 0, 1)[None].float() / 127.5 - 1


def to_image(rgb: Tensor) -> Image.Image:
    """(1, 3, H, W) or (3, H, W) in [-1, 1] -> RGB image; values outside are clamped."""
    pixels = ((rgb.reshape(3, *rgb.shape[-2:]).float().clamp(-1, 1) + 1) * 127.5).round().byte()
    return Image.fromarray(pixels.permute(1, 2, 0).cpu().numpy())


def center_view(image: Image.Image) -> Image.Image:
    """The centred square of an image's short side."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))


def resized(view: Image.Image, side: int) -> Image.Image:
    """A square view at another side, by Lanczos."""
    return view if view.width == side else view.resize((side, side), Image.Resampling.LANCZOS)


@torch.no_grad()
def field_of(autoencoder: Autoencoder, view: Image.Image, *, lowres_px: int) -> Field:
    """The field of a square view, which the encoder sees at `lowres_px`."""
    device = next(autoencoder.parameters()).device
    return autoencoder.field(autoencoder.encode(to_tensor(resized(view, lowres_px)).to(device)))


def reconstruct(autoencoder: Autoencoder, image: Image.Image, sizes: Iterable[int], *,
                lowres_px: int) -> Iterator[tuple[int, Image.Image]]:
    """(s, the centred view of `image` rendered at side s) for each s of `sizes`, one by one; encoded once."""
    field = field_of(autoencoder, center_view(image), lowres_px=lowres_px)
    for size in sizes:
        yield size, to_image(field.render(size, size))


def psnr_db(a: Image.Image, b: Image.Image) -> float:
    """PSNR of two RGB images of one size, decibels; infinite where they are equal."""
    error = (np.asarray(a, np.float64) - np.asarray(b, np.float64)) / 255
    mse = float(np.square(error).mean())
    return float("inf") if mse == 0 else float(-10 * np.log10(mse))


@dataclass(frozen=True)
class Panel:
    """One picture of a sheet and the line under it."""

    image: Image.Image
    label: str


@torch.no_grad()
def compare(autoencoder: Autoencoder, whole: Callable[[int], Image.Image], *, native: int, lowres_px: int,
            sizes: Sequence[int] = (256, 512)) -> list[Panel]:
    """Panels of one photograph: encoder's input, photograph, renders at `sizes` and at native, a deep zoom.

    All renders take the norms' statistics of the one at PANEL: no seams, and one pass over the pixels.
    `whole(r)` is the photograph's view at side r <= native. Renders above PANEL are shown reduced to it.
    """
    field = field_of(autoencoder, whole(min(native, 2 * lowres_px)), lowres_px=lowres_px)
    panels = [Panel(whole(min(native, lowres_px)), f"input {lowres_px}"), Panel(whole(min(native, PANEL)), "photograph")]
    statistics = field.statistics(PANEL, PANEL)
    for size in [*(size for size in sizes if size < native), native]:
        render = to_image(field.render(size, size, statistics=statistics))
        name = f"native {size}" if size == native else str(size)
        panels.append(Panel(render, f"render {name}: {psnr_db(render, whole(size)):.1f} dB"))
    virtual = PANEL * ZOOM
    start = (virtual - PANEL) // 2
    box = (start, start, start + PANEL, start + PANEL)
    zoom = to_image(field.render(virtual, virtual, box=box, statistics=statistics))
    top, left, bottom, right = (round(edge * native / virtual) for edge in box)
    middle = whole(native).crop((left, top, right, bottom))
    return [*panels, Panel(middle, f"photograph x{ZOOM}"), Panel(zoom, f"render x{ZOOM}")]


def sheet(rows: Sequence[Sequence[Panel]]) -> Image.Image:
    """Rows of panels on white, each with its label below."""
    gap, line = 8, 16
    width = max(len(row) for row in rows) * (PANEL + gap) + gap
    page = Image.new("RGB", (width, len(rows) * (PANEL + line + gap) + gap), "white")
    draw = ImageDraw.Draw(page)
    for number, row in enumerate(rows):
        top = gap + number * (PANEL + line + gap)
        for column, panel in enumerate(row):
            left = gap + column * (PANEL + gap)
            small = min(panel.image.size) < PANEL
            page.paste(panel.image.resize((PANEL, PANEL), Image.Resampling.NEAREST if small else Image.Resampling.LANCZOS),
                       (left, top))
            draw.text((left, top + PANEL + 2), panel.label, fill="black")
    return page
