"""Renders of a field into files, of any size: memory depends on the tile, not on the output.

    Picture.of(field).save("portrait.png", 3000, 2000)
    Picture.of(field).save_deep_zoom("portrait", 16384)          # portrait.dzi and portrait_files/
"""

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType

import numpy as np
from tqdm import tqdm

from infd.config import DEFAULT_MODE, Mode
from infd.errors import ConfigError
from infd.generation import outputs, writers
from infd.generation.deep_zoom_files import write_deep_zoom
from infd.generation.reconstruct import to_pixels
from infd.models.boxes import Box, num_tiles
from infd.models.fields import Field
from infd.models.renderers.clif import Statistics
from infd.models.statistics import Windows

TILE_PX = 256

Progress = Callable[[int, int], None]
"""Called with (work done, work in all), in a unit of its own, as tiles are finished."""


def save(
    field: Field, uri: str, width: int, height: int, *, statistics: Mode | Statistics | Windows = DEFAULT_MODE,
    box: Box | None = None, tile_px: int = TILE_PX, metadata: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> str:
    """Render the one image of `field` into a PNG, JPEG or tiled BigTIFF, by the ending of `uri`, which is returned; or
    that `box` of it alone.

    Pixels are those of `Field.render` with the same statistics and tile_px, rounded to 8 bits. The metadata are stored
    as one JSON text (`writers.write_picture`). Nothing stands at `uri` until all of it does. Raises ConfigError for an
    ending or a size that cannot be, StorageError for a place that cannot be written, ValueError as `Field.render_tiles`.
    """
    region = box or Box(0, 0, height, width)
    kind = writers.format_of(uri, height=region.height, width=region.width)
    rows = bands(field, height, width, box=box, statistics=statistics, tile_px=tile_px, progress=progress)
    with outputs.whole_file(uri) as path:
        writers.write_picture(path, rows, kind=kind, height=region.height, width=region.width, metadata=metadata or {})
    return uri


def save_deep_zoom(
    field: Field, uri: str, width: int, height: int | None = None, *,
    statistics: Mode | Statistics | Windows = DEFAULT_MODE, tile_px: int = TILE_PX, tiles: str = "jpg",
    metadata: Mapping[str, str] | None = None, progress: Progress | None = None,
) -> str:
    """Render the one image of `field` at width x height (square: one number) into a Deep Zoom pyramid.

    Writes `uri`.dzi, whose address is returned, and `uri`_files; an ending .dzi of `uri` counts as not there. Levels
    below the full size are made from it by halving. `tiles`: jpg or png. The rest as `save`.
    """
    if tiles not in ("jpg", "png"):
        raise ConfigError(f"tiles={tiles}: expected jpg or png")
    height, uri = height or width, uri.removesuffix(".dzi").rstrip("/")
    rows = bands(field, height, width, statistics=statistics, tile_px=tile_px, progress=progress)
    with outputs.whole_deep_zoom(uri) as path:
        write_deep_zoom(path, rows, height=height, width=width, tiles=tiles, metadata=metadata or {})
    return f"{uri}.dzi"


def bands(
    field: Field, height: int, width: int, *, statistics: Mode | Statistics | Windows = DEFAULT_MODE,
    box: Box | None = None, tile_px: int = TILE_PX, progress: Progress | None = None,
) -> Iterator[np.ndarray]:
    """The render of the one image of `field`, or a box of it, in bands of at most tile_px rows: uint8 (h, W, 3), from top
    to bottom.

    A band is good until the next one is asked for, which takes its place in memory.
    """
    if len(field) != 1:
        raise ValueError(f"a field of {len(field)} images: expected one; take field[k]")
    convolutions = field.renderer.num_norms + 1
    fits = height <= tile_px and width <= tile_px
    region = box or Box(0, 0, height, width)
    counted = _Counted(progress, num_tiles(region, tile_px) * convolutions)
    if statistics == "whole" and not fits:
        all_tiles = num_tiles(Box(0, 0, height, width), tile_px)
        counted.total += all_tiles * convolutions * (convolutions - 1) // 2   # 1 + 2 + … + the last norm's convolutions
        statistics = field.statistics(height, width, tile_px=tile_px, progress=counted.add)
    band = np.empty((min(tile_px, region.height), region.width, 3), np.uint8)
    for tile, rgb in field.render_tiles(height, width, statistics=statistics, box=region, tile_px=tile_px):
        left = tile.x - region.x
        band[:tile.height, left:left + tile.width] = to_pixels(rgb)
        counted.add(convolutions)
        if left + tile.width == region.width:
            yield band[:tile.height]


class _Counted:
    """Work done so far, told to `progress`; counted in convolutions over one tile."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self.progress, self.total, self.done = progress, total, 0

    def add(self, work: int) -> None:
        self.done += work
        if self.progress:
            self.progress(self.done, self.total)


class Picture(Field):
    """A field that can be written to files."""

    about: Mapping[str, str] = MappingProxyType({})
    """What files of it tell where no metadata are given: beside it their size."""

    @classmethod
    def of(cls, field: Field) -> "Picture":
        """The same field."""
        return cls(field.phi, field.renderer, patch_px=field.patch_px)

    def save(
        self, uri: str, width: int, height: int, *, statistics: Mode | Statistics | Windows = DEFAULT_MODE,
        box: Box | None = None, tile_px: int = TILE_PX, metadata: Mapping[str, str] | None = None,
        progress: Progress | None = None,
    ) -> str:
        """See `save`; without `progress` a bar on a terminal."""
        with shown(progress, uri) as told:
            return save(self, uri, width, height, statistics=statistics, box=box, tile_px=tile_px,
                        metadata=self._told(metadata, width, height), progress=told)

    def save_deep_zoom(
        self, uri: str, width: int, height: int | None = None, *,
        statistics: Mode | Statistics | Windows = DEFAULT_MODE, tile_px: int = TILE_PX, tiles: str = "jpg",
        metadata: Mapping[str, str] | None = None, progress: Progress | None = None,
    ) -> str:
        """See `save_deep_zoom`; without `progress` a bar on a terminal."""
        with shown(progress, uri) as told:
            return save_deep_zoom(self, uri, width, height, statistics=statistics, tile_px=tile_px, tiles=tiles,
                                  metadata=self._told(metadata, width, height or width), progress=told)

    def _told(self, metadata: Mapping[str, str] | None, width: int, height: int) -> Mapping[str, str]:
        if metadata is not None or not self.about:
            return metadata or {}
        return {**self.about, "size": f"{width}x{height}"}


@contextmanager
def shown(progress: Progress | None, what: str) -> Iterator[Progress | None]:
    """`progress`, or a bar where stderr is a terminal, or nothing."""
    if progress is not None or not sys.stderr.isatty():
        yield progress
        return
    with tqdm(desc=what, unit_scale=True, leave=False, bar_format="{desc}: {percentage:3.0f}%|{bar}| {remaining} left") as bar:
        def tell(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield tell
