"""Rectangles of pixels of a render, and how a large one is cut into tiles.

Shapes: h w a box, H W the render that it lies in.
"""

from collections.abc import Iterator
from typing import NamedTuple

from torch import Tensor


class Box(NamedTuple):
    """A rectangle of pixels of a render: first row, first column, height, width."""

    y: int
    x: int
    height: int
    width: int

    def grown(self, by: int, *, height: int, width: int) -> "Box":
        """Larger by `by` pixels on each side, but never past an image of height x width."""
        top, left = max(self.y - by, 0), max(self.x - by, 0)
        bottom, right = min(self.y + self.height + by, height), min(self.x + self.width + by, width)
        return Box(top, left, bottom - top, right - left)

    def common(self, other: "Box") -> "Box":
        """The part that lies in both; its sides are 0 where they do not meet."""
        top, left = max(self.y, other.y), max(self.x, other.x)
        bottom = min(self.y + self.height, other.y + other.height)
        right = min(self.x + self.width, other.x + other.width)
        return Box(top, left, max(bottom - top, 0), max(right - left, 0))

    def of(self, image: Tensor, place: "Box") -> Tensor:
        """The pixels of this box out of `image` (..., h, w), which shows `place`."""
        top, left = self.y - place.y, self.x - place.x
        return image[..., top:top + self.height, left:left + self.width]


def tiles(region: Box, tile_px: int) -> Iterator[Box]:
    """Cut a region into tiles of at most tile_px a side, row by row; the grid is anchored at the image's corner."""
    for y in range(region.y // tile_px * tile_px, region.y + region.height, tile_px):
        for x in range(region.x // tile_px * tile_px, region.x + region.width, tile_px):
            part = Box(y, x, tile_px, tile_px).common(region)
            if part.height and part.width:
                yield part


def num_tiles(region: Box, tile_px: int) -> int:
    """How many pieces `tiles` cuts."""
    return ((region.y + region.height - 1) // tile_px - region.y // tile_px + 1) * (
        (region.x + region.width - 1) // tile_px - region.x // tile_px + 1)


def checked_box(height: int, width: int, box: Box | tuple[int, int, int, int] | None) -> Box:
    """The box, or the whole render for None. Raises ValueError when it is empty or leaves the render."""
    if height < 1 or width < 1:
        raise ValueError(f"height={height}, width={width}: a render has at least 1 pixel a side")
    if isinstance(box, Box):
        box = (box.y, box.x, box.y + box.height, box.x + box.width)
    y0, x0, y1, x1 = box or (0, 0, height, width)
    if not (0 <= y0 < y1 <= height and 0 <= x0 < x1 <= width):
        raise ValueError(f"box y0={y0}, x0={x0}, y1={y1}, x1={x1}: must lie inside the render of {height} x {width}")
    return Box(y0, x0, y1 - y0, x1 - x0)
