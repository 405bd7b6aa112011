"""Photographs through the autoencoder and back, at any size, and sheets that show them side by side."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from infd.models.autoencoder import Autoencoder
from infd.models.boxes import Box
from infd.models.fields import Field
from infd.models.renderers.clif import Statistics

PANEL = 256
"""Side of a panel of a sheet, pixels."""
ZOOM = 4
"""A zoom shows the middle 1/ZOOM of the view at PANEL pixels."""
DEEP_PX = 128
"""A deep zoom shows so many pixels of the native side a panel."""


def to_tensor(image: Image.Image) -> Tensor:
    """RGB image -> (1, 3, H, W) float32 in [-1, 1]."""
    pixels = torch.from_numpy(np.array(image.convert("RGB")))
    return pixels.permute(2, 0, 1)[None].float() / 127.5 - 1


To8Bits = Literal["nearest", "down"]
"""How a render becomes bytes: to the nearest level, or to the level below, as the published scripts write their PNGs."""


def to_pixels(rgb: Tensor, *, to_8_bits: To8Bits = "nearest") -> np.ndarray:
    """(1, 3, H, W) or (3, H, W) in [-1, 1] -> uint8 (H, W, 3), rounded; values outside are clamped."""
    planes = rgb.reshape(3, *rgb.shape[-2:]).float()
    if to_8_bits == "down":                             # the published order of operations, which decides the last bit
        pixels = (planes * 0.5 + 0.5).clamp(0, 1).mul(255).byte()
    else:
        pixels = ((planes.clamp(-1, 1) + 1) * 127.5).round().byte()
    return pixels.permute(1, 2, 0).cpu().numpy()


def to_image(rgb: Tensor) -> Image.Image:
    """(1, 3, H, W) or (3, H, W) in [-1, 1] -> RGB image; see `to_pixels`."""
    return Image.fromarray(to_pixels(rgb))


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


class View(Protocol):
    """A photograph's square view: `view(r, y, x, size)` is the part of `size` pixels at (y, x) of it at side r."""

    def __call__(self, r: int, y: int, x: int, size: int, /) -> Image.Image: ...


def view_of(image: Image.Image) -> View:
    """The centred view of an image that is in memory."""
    square = center_view(image)

    def part(r: int, y: int, x: int, size: int, /) -> Image.Image:
        return resized(square, r).crop((x, y, x + size, y + size))

    return part


class Subject(NamedTuple):
    """A photograph of side `native` and its field; all renders of it take the same statistics of the norms, those of the
    mode "reference", which are made once."""

    view: View
    native: int
    lowres_px: int
    field: Field
    statistics: Statistics


def subject(autoencoder: Autoencoder, view: View, *, native: int, lowres_px: int) -> Subject:
    """The photograph `view` of side `native`, encoded."""
    side = min(native, 2 * lowres_px)
    field = field_of(autoencoder, view(side, 0, 0, side), lowres_px=lowres_px)
    return Subject(view, native, lowres_px, field, field.reference())


def compare(seen: Subject, *, most_px: int, sizes: Sequence[int] = (256, 512)) -> list[Panel]:
    """Panels of one photograph: encoder's input, photograph, renders at `sizes` and at native, the middle 1/ZOOM.

    Nothing is larger than most_px, which a larger native is reduced to. Renders above PANEL are shown reduced to it.
    """
    def whole(side: int) -> Image.Image:
        return seen.view(side, 0, 0, side)

    native, largest = seen.native, min(seen.native, most_px)
    panels = [Panel(whole(min(native, seen.lowres_px)), f"input {seen.lowres_px}"),
              Panel(whole(min(native, PANEL)), "photograph")]
    for size in [*(size for size in sizes if size < largest), largest]:
        render = to_image(seen.field.render(size, size, statistics=seen.statistics))
        name = str(size) if size < largest else f"native {native}" if largest == native else f"{size} of native {native}"
        panels.append(Panel(render, f"render {name}: {psnr_db(render, whole(size)):.1f} dB"))
    side = min(native, PANEL * ZOOM)
    start, part = (side - side // ZOOM) // 2, side // ZOOM
    virtual, first = PANEL * ZOOM, (PANEL * ZOOM - PANEL) // 2
    zoom = to_image(seen.field.render(virtual, virtual, box=Box(first, first, PANEL, PANEL), statistics=seen.statistics))
    return [*panels, Panel(seen.view(side, start, start, part), f"photograph x{ZOOM}"), Panel(zoom, f"render x{ZOOM}")]


def deep_zoom(seen: Subject) -> list[Panel]:
    """DEEP_PX pixels of the photograph at its native side where most is to be seen, and of its render; a sheet enlarges."""
    part = min(DEEP_PX, seen.native)
    side = min(seen.native, PANEL * ZOOM)
    y, x = (min(round(edge * seen.native / side), seen.native - part)
            for edge in busiest(seen.view(side, 0, 0, side), part=max(1, round(part * side / seen.native))))
    pixels = seen.view(seen.native, y, x, part)
    render = to_image(seen.field.render(seen.native, seen.native, box=Box(y, x, part, part), statistics=seen.statistics))
    return [Panel(pixels, f"{part} px of native {seen.native}"),
            Panel(render, f"render of them: {psnr_db(render, pixels):.1f} dB")]


def busiest(square: Image.Image, *, part: int) -> tuple[int, int]:
    """First row and column of that block of `part` pixels whose neighbouring pixels differ most; blocks overlap by half."""
    grey = np.asarray(square.convert("L"), np.float64)
    detail = np.abs(np.diff(grey, axis=0, prepend=grey[:1])) + np.abs(np.diff(grey, axis=1, prepend=grey[:, :1]))
    total = np.pad(detail.cumsum(0).cumsum(1), ((1, 0), (1, 0)))      # of all pixels above and to the left
    first = np.unique([*range(0, len(grey) - part, max(1, part // 2)), len(grey) - part])
    after = first + part
    sums = total[np.ix_(after, after)] - total[np.ix_(first, after)] - total[np.ix_(after, first)] + total[np.ix_(first, first)]
    y, x = np.unravel_index(int(sums.argmax()), sums.shape)
    return int(first[y]), int(first[x])


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
