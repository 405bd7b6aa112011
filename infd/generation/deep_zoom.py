"""Tiles of a Deep Zoom pyramid rendered from the field when they are asked for: level by level, each at its own side.

Levels are numbered as in a .dzi: the last one has the full size, each one before it half of it, rounded up; level 0 is
one pixel. A tile shows TILE_PX pixels and OVERLAP_PX more towards each neighbour. Unlike a pyramid in files, where small
levels are reductions of the large one, a level of side s is the field rendered at side s.
"""

from typing import Literal

import numpy as np

from infd.generation.deep_zoom_files import TILE_PX, span
from infd.generation.reconstruct import to_pixels
from infd.models.boxes import Box
from infd.models.fields import Field
from infd.models.renderers.clif import Statistics
from infd.models.statistics import Windows

LEAST_PX = 64
"""Levels whose short side is below this and below P are not rendered: training never saw a view so small."""

LocalMode = Literal["window", "reference"]
"""The modes in which a tile costs what lies around it; "whole" would read the whole level for the first one."""


class DeepZoom:
    """The pyramid of one field, width x height at its last level."""

    def __init__(self, field: Field, width: int, height: int, *, statistics: LocalMode = "reference") -> None:
        if len(field) != 1:
            raise ValueError(f"a field of {len(field)} images: expected one; take field[k]")
        if width < 1 or height < 1:
            raise ValueError(f"width={width}, height={height}: must be at least 1")
        self.field, self.width, self.height = field, width, height
        self.last_level = (max(width, height) - 1).bit_length()
        least = min(LEAST_PX, field.patch_px or LEAST_PX)
        self.first_level = next(
            (level for level in range(self.last_level) if min(self.size(level)) >= least), self.last_level)
        self._statistics: dict[int, Statistics | Windows] = {}
        self._reference = field.reference() if statistics == "reference" else None

    def size(self, level: int) -> tuple[int, int]:
        """Width and height of a level."""
        halvings = self.last_level - level
        return -(-self.width >> halvings), -(-self.height >> halvings)

    def box(self, level: int, column: int, row: int) -> Box:
        """Where a tile lies in its level. Raises LookupError where there is no such tile."""
        if not self.first_level <= level <= self.last_level:
            raise LookupError(f"level {level}: expected {self.first_level} to {self.last_level}")
        width, height = self.size(level)
        if not (0 <= row * TILE_PX < height and 0 <= column * TILE_PX < width):
            raise LookupError(f"level {level} of {width} x {height} has no tile in column {column} and row {row}")
        (top, bottom), (left, right) = span(row, height), span(column, width)
        return Box(top, left, bottom - top, right - left)

    def tile(self, level: int, column: int, row: int) -> np.ndarray:
        """uint8 (h, w, 3). Raises LookupError where there is no such tile.

        Law: it is that part of the level's render. Not safe to call from two threads at once.
        """
        box = self.box(level, column, row)
        width, height = self.size(level)
        if level not in self._statistics:
            self._statistics[level] = self._reference or self.field.windows(height, width)
        return to_pixels(self.field.render(height, width, statistics=self._statistics[level], box=box))
