"""A Deep Zoom pyramid in files, from rows of pixels as they come: of each level one row of tiles is in memory.

libvips writes such pyramids too, but holds two rows of tiles of every level: at 16384 pixels a side twice what this does.
A level is half of the one above, rounded up, each pixel the mean of four; at an odd edge the last row or column counts
twice. Shapes: H W a level, h some rows of it.
"""

import json
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from PIL import Image

TILE_PX, OVERLAP_PX = 254, 1
"""A tile shows TILE_PX pixels and OVERLAP_PX more towards each neighbour: 256 with both."""
PIECE_ROWS = 16
"""Rows that are halved at once; even."""
ENCODERS = 2
"""Threads that encode the tiles of one row."""
FORMATS: dict[str, dict[str, Any]] = {"jpg": {"format": "JPEG", "quality": 90, "subsampling": 0}, "png": {"format": "PNG"}}
DESCRIPTOR = """<?xml version="1.0" encoding="UTF-8"?>
<Image xmlns="http://schemas.microsoft.com/deepzoom/2008" Format="{tiles}" Overlap="{overlap}" TileSize="{tile}">
  <Size Width="{width}" Height="{height}"/>
</Image>
"""


def write_deep_zoom(path: str, rows: Iterable[np.ndarray], *, height: int, width: int, tiles: str,
                    metadata: Mapping[str, str]) -> None:
    """Write rows, uint8 (h, W, 3) from top to bottom, H in all, as `path`.dzi and the folder `path`_files, with tiles "jpg" or
    "png" and the metadata in metadata.json. Raises OSError."""
    folder = f"{path}_files"
    os.makedirs(folder)
    with ThreadPoolExecutor(ENCODERS) as pool:
        level = Level(folder, (max(height, width) - 1).bit_length(), height=height, width=width, tiles=tiles, pool=pool)
        for band in rows:
            for first in range(0, len(band), PIECE_ROWS):
                level.take(band[first:first + PIECE_ROWS])
        level.end()
    with open(f"{folder}/metadata.json", "w", encoding="utf-8") as file:
        json.dump(dict(metadata), file, sort_keys=True)
    with open(f"{path}.dzi", "w", encoding="utf-8") as file:
        file.write(DESCRIPTOR.format(tiles=tiles, overlap=OVERLAP_PX, tile=TILE_PX, width=width, height=height))


def span(index: int, length: int) -> tuple[int, int]:
    """The first pixel of a tile along an axis of `length` pixels, and the one behind its last."""
    return max(0, index * TILE_PX - OVERLAP_PX), min(length, (index + 1) * TILE_PX + OVERLAP_PX)


class Level:
    """One level and those below it: rows go in from top to bottom, files come out."""

    def __init__(self, folder: str, number: int, *, height: int, width: int, tiles: str, pool: ThreadPoolExecutor) -> None:
        self.folder, self.tiles, self.pool = os.path.join(folder, str(number)), tiles, pool
        os.makedirs(self.folder)
        self.height, self.width = height, width
        self.strip = np.empty((min(TILE_PX + 2 * OVERLAP_PX, height), width, 3), np.uint8)
        """The rows of the tiles of `row`, as far as they have come."""
        self.row = self.filled = 0
        self.odd = np.empty((0, width, 3), np.uint8)
        """A row that waits for the next one, to be halved with it."""
        self.below = None if number == 0 else Level(
            folder, number - 1, height=-(-height // 2), width=-(-width // 2), tiles=tiles, pool=pool)

    def take(self, rows: np.ndarray) -> None:
        """uint8 (h, W, 3), the next ones."""
        if self.below is not None:
            pairs = np.concatenate([self.odd, rows])
            self.odd = pairs[len(pairs) // 2 * 2:]
            if len(pairs) > 1:
                self.below.take(halved(pairs[:len(pairs) // 2 * 2]))
        while len(rows):
            first, last = span(self.row, self.height)
            part = rows[:last - first - self.filled]
            self.strip[self.filled:self.filled + len(part)] = part
            self.filled, rows = self.filled + len(part), rows[len(part):]
            if self.filled == last - first:
                self.write()

    def end(self) -> None:
        """After the last row."""
        if self.below is not None:
            if len(self.odd):
                self.below.take(halved(np.concatenate([self.odd, self.odd])))
            self.below.end()

    def write(self) -> None:
        """The tiles of the rows that are there; those that the next ones share are kept. The last two rows of tiles may be
        complete at once."""
        while self.row * TILE_PX < self.height:
            first, last = span(self.row, self.height)
            if self.filled < last - first:
                return
            list(self.pool.map(self.write_tile, range(-(-self.width // TILE_PX))))
            self.row += 1
            shared = max(0, last - span(self.row, self.height)[0])
            self.strip[:shared] = self.strip[self.filled - shared:self.filled].copy()
            self.filled = shared

    def write_tile(self, column: int) -> None:
        left, right = span(column, self.width)
        tile = Image.fromarray(np.ascontiguousarray(self.strip[:self.filled, left:right]))
        tile.save(os.path.join(self.folder, f"{column}_{self.row}.{self.tiles}"), **FORMATS[self.tiles])


def halved(rows: np.ndarray) -> np.ndarray:
    """uint8 (2 h, W, 3) -> (h, ceil(W / 2), 3): the mean of four, rounded."""
    tall = rows[0::2].astype(np.uint16) + rows[1::2]
    if tall.shape[1] % 2:
        tall = np.concatenate([tall, tall[:, -1:]], axis=1)
    return ((tall[:, 0::2] + tall[:, 1::2] + 2) >> 2).astype(np.uint8)
