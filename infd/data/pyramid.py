"""A photo as a pyramid of tiles, and the patch of a view read from it.

Level 0 is the photo, level k + 1 halves level k (Lanczos, sides rounded up) while the short side stays ≥ 256. Each
level is cut into T × T tiles, row by row, each encoded alone; of a JPEG tile a part can be decoded (`jpeg_pieces`).
A JPEG has the same quantization step at all frequencies: its error is bounded whatever the picture shows, and the
bytes are those of the usual tables at quality 95, which let noise and fine texture fall to 36 dB.
Coordinates are pixels (y, x) with the origin at the photo's upper left corner; a view is a square of level-0 pixels; r
is the side to which the view is resampled.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from math import ceil, floor, isqrt
from typing import NamedTuple, Protocol

import imagecodecs
import numpy as np
from PIL import Image, PngImagePlugin, WebPImagePlugin

from infd.config import IngestConfig
from infd.data import jpeg_pieces
from infd.data.jpeg_pieces import BLOCK_PX, PIECE_PX
from infd.errors import DatasetError

LANCZOS = Image.Resampling.LANCZOS
LEAST_SIDE_PX = 256
"""No level has a shorter short side, but level 0 of a small photo."""
LOWRES_PX = 256
"""Side of the stored lowres; a photo with a shorter side stores that side."""
RAW_LOWRES_FROM_PX = 1024
"""Photos with at least this short side store the lowres as it is: read in no time, for some percent more bytes."""
JPEG_STEPS = (3, 2)
"""Quantization steps of luma and chroma, 4:4:4. An error uniform within a step has 1/12 of its square: 0.75 for Y, 0.33
for Cb and Cr, so 45 dB over RGB, rounding counted in. Steps (2, 2) make 46 dB and 13% more bytes, (3, 3) 43.7 dB."""
JPEG_TABLES = [[step] * 64 for step in JPEG_STEPS]
OVERSAMPLING = 1.5
"""A patch comes from a level with at least this many pixels per patch pixel (or level 0): less and it is not true."""
SUPPORT = 3.0
"""Reach of the Lanczos filter in target pixels."""
DECODER_ERRORS = (OSError, SyntaxError, ValueError, EOFError, IndexError, imagecodecs.Jpeg8Error)
"""What decoders raise over damaged bytes."""


class Level(NamedTuple):
    """One level: its sides in pixels, and the number of its first tile among all tiles of the photo."""

    width: int
    height: int
    first_tile: int


class View(NamedTuple):
    """The square of level-0 pixels that stands for the image: its upper left corner and its side."""

    y: int
    x: int
    side: int


class Tiled(Protocol):
    """What patches are read from: a `Pyramid` in memory or a row of a shard. `tiles[i]` is one encoded tile."""

    @property
    def levels(self) -> Sequence[Level]: ...
    @property
    def tiles(self) -> "Sequence[bytes | memoryview]": ...
    @property
    def tile_px(self) -> int: ...
    @property
    def codec(self) -> str: ...
    @property
    def lowres(self) -> "bytes | memoryview": ...
    @property
    def lowres_codec(self) -> str: ...
    @property
    def name(self) -> str: ...


@dataclass(frozen=True, kw_only=True)
class Pyramid:
    """A photo's encoded tiles of all levels, and the encoded lowres of its centred view."""

    levels: list[Level]
    tiles: list[bytes]
    lowres: bytes
    lowres_codec: str
    tile_px: int
    codec: str
    name: str = "a photo in memory"


class Region(NamedTuple):
    """Decoded pixels of one level (mode RGB or RGBX), and the place of the first of them."""

    image: Image.Image
    left: int
    top: int


# ---------------------------------------------------------------- building


def build(image: Image.Image, config: IngestConfig) -> Pyramid:
    """All tiles of an RGB photo. Memory: the photo, one level more, and the encoded tiles."""
    view = center_view(image.width, image.height)
    side = min(LOWRES_PX, view.side)
    square = (view.x, view.y, view.x + view.side, view.y + view.side)
    lowres_codec = "raw" if view.side >= RAW_LOWRES_FROM_PX else config.codec
    lowres = encode(image.resize((side, side), LANCZOS, box=square), lowres_codec)
    levels: list[Level] = []
    tiles: list[bytes] = []
    for width, height in level_sides(*image.size):
        image = image if (width, height) == image.size else image.resize((width, height), LANCZOS)
        levels.append(Level(width, height, len(tiles)))
        tiles.extend(_encoded_tiles(image, config))
    return Pyramid(levels=levels, tiles=tiles, lowres=lowres, lowres_codec=lowres_codec, tile_px=config.tile_px,
                   codec=config.codec)


def level_sides(width: int, height: int) -> list[tuple[int, int]]:
    """(width, height) of every level. Law: each is half of the one before, rounded up; short sides stay ≥ 256."""
    sides = [(width, height)]
    while min(half := (ceil(sides[-1][0] / 2), ceil(sides[-1][1] / 2))) >= LEAST_SIDE_PX:
        sides.append(half)
    return sides


def center_view(width: int, height: int) -> View:
    """The centred square of the short side."""
    return view_at(width, height, 0.5)


def view_at(width: int, height: int, offset: float) -> View:
    """The square of the short side, `offset` in [0, 1] of the way along the long side, at whole pixels."""
    if not 0 <= offset <= 1:
        raise ValueError(f"offset={offset}: must lie in [0, 1]")
    side = min(width, height)
    return View(floor(offset * (height - side)), floor(offset * (width - side)), side)


def encode(image: Image.Image, codec: str) -> bytes:
    """A tile's or a lowres' bytes; raw: of a square picture. Law: all but jpeg give the same pixels back, and of a jpeg
    no part of 64 × 64 pixels lies below 44.9 dB."""
    buffer = BytesIO()
    if codec == "raw":
        return image.tobytes()
    if codec == "jpeg":
        image.save(buffer, "JPEG", qtables=JPEG_TABLES, subsampling=0)
    elif codec == "png":
        image.save(buffer, "PNG", compress_level=6)
    elif codec == "webp-lossless":
        image.save(buffer, "WEBP", lossless=True, quality=50, method=2, exact=True)
    else:
        raise ValueError(f"codec={codec}: expected jpeg, png, webp-lossless or raw")
    return buffer.getvalue()


def decode(data: "bytes | memoryview", codec: str) -> Image.Image:
    """The RGB pixels that `encode` stored."""
    if codec == "jpeg":
        image = Image.fromarray(decode_jpeg(data))
    elif codec == "raw":
        image = Image.fromarray(decode_raw(data))
    else:
        plugin = {"png": PngImagePlugin.PngImageFile, "webp-lossless": WebPImagePlugin.WebPImageFile}[codec]
        image = plugin(BytesIO(data))
        image.load()
    return image if image.mode == "RGB" else image.convert("RGB")


def decode_jpeg(data: "bytes | memoryview") -> np.ndarray:
    """The pixels of a JPEG: uint8 (h, w, 3), writable; in half of Pillow's time. Raises what DECODER_ERRORS names."""
    if bytes(data[-2:]) != jpeg_pieces.EOI:
        raise ValueError("the JPEG is cut short")  # the decoder would make up what is missing
    return imagecodecs.jpeg8_decode(bytes(data))


def decode_raw(data: "bytes | memoryview") -> np.ndarray:
    """The pixels of a square picture: uint8 (side, side, 3), writable. Raises ValueError where it is no square."""
    side = isqrt(len(data) // 3)
    if side == 0 or 3 * side * side != len(data):
        raise ValueError(f"{len(data)} bytes are no square picture")
    return np.frombuffer(bytearray(data), np.uint8).reshape(side, side, 3)


def _encoded_tiles(image: Image.Image, config: IngestConfig) -> list[bytes]:
    t = config.tile_px
    tiles = (image.crop((x, y, min(x + t, image.width), min(y + t, image.height)))
             for y in range(0, image.height, t) for x in range(0, image.width, t))
    if _has_pieces(config):
        return [jpeg_pieces.encode(tile, JPEG_TABLES) for tile in tiles]
    return [encode(tile, config.codec) for tile in tiles]


def _has_pieces(photo: "Tiled | IngestConfig") -> bool:
    """Whether its tiles are JPEGs that can be joined; those of the first datasets cannot all the same."""
    return photo.codec == "jpeg" and photo.tile_px % PIECE_PX == 0


# ---------------------------------------------------------------- reading


def read_patch(photo: Tiled, *, r: int, y: int, x: int, h: int, w: int, view: View) -> np.ndarray:
    """The h × w pixels at (y, x) of `view` resampled to r × r: uint8 (h, w, 3), writable.

    Law: at r = view.side these are the stored pixels. Where level 0 serves, the result is the crop of the whole
    view's Lanczos resize, to one grey level. From photographs in the default codec no patch of 256 pixels is below 45 dB
    PSNR of that crop, at any r. Raises ValueError for a patch outside the view or an enlarged view, DatasetError (naming
    the photo) for tiles that cannot be decoded.
    """
    if not (y >= 0 and x >= 0 and 0 < h <= r - y and 0 < w <= r - x):
        raise ValueError(f"patch y={y}, x={x}, h={h}, w={w}: must lie inside the view at r={r}")
    if r > view.side:
        raise ValueError(f"r={r}: the view has {view.side} pixels, and nothing is enlarged; ask for r up to {view.side}")
    if r == view.side:
        top, left = view.y + y, view.x + x
        region = _region(photo, 0, left, top, left + w, top + h)
        box = (left - region.left, top - region.top, left - region.left + w, top - region.top + h)
        return _pixels(region.image.crop(box))
    k = serving_level(photo.levels, r)
    level, step = photo.levels[k], view.side / r
    sy, sx = level.height / photo.levels[0].height, level.width / photo.levels[0].width
    y0, y1 = (view.y + y * step) * sy, (view.y + (y + h) * step) * sy
    x0, x1 = (view.x + x * step) * sx, (view.x + (x + w) * step) * sx
    top, bottom = _reach(y0, y1, step * sy, level.height)
    left, right = _reach(x0, x1, step * sx, level.width)
    image, left, top = _region(photo, k, left, top, right, bottom)
    box = (x0 - left, y0 - top, min(x1 - left, image.width), min(y1 - top, image.height))
    return _pixels(image.resize((w, h), LANCZOS, box=box))


def read_lowres(photo: Tiled, size: int) -> np.ndarray:
    """The stored lowres, at side `size` at most that of the stored one: uint8 (size, size, 3), writable.

    Raises DatasetError naming the photo.
    """
    codec = photo.lowres_codec
    try:
        match codec:
            case "jpeg":
                pixels = decode_jpeg(photo.lowres)
            case "raw":
                pixels = decode_raw(photo.lowres)
            case _:
                pixels = np.array(decode(photo.lowres, codec))
    except DECODER_ERRORS as error:
        raise DatasetError(f"{photo.name}: its lowres cannot be decoded as {codec}; the shard is damaged: "
                           "delete it and get it again") from error
    if len(pixels) == size:
        return pixels
    return _pixels(Image.fromarray(pixels).resize((size, size), LANCZOS))


def serving_level(levels: Sequence[Level], r: int) -> int:
    """The smallest level whose short side is at least 1.5 r, else level 0."""
    return max((k for k, level in enumerate(levels) if min(level.width, level.height) >= OVERSAMPLING * r), default=0)


def _reach(low: float, high: float, scale: float, side: int) -> tuple[int, int]:
    """The whole pixels under [low, high) and under the filter's support around it, inside [0, side)."""
    margin = SUPPORT * max(1.0, scale) + 1
    return max(0, floor(low - margin)), min(side, ceil(high + margin))


def _pixels(image: Image.Image) -> np.ndarray:
    """RGB or RGBX → uint8 (h, w, 3), writable: three times as fast as np.array, which goes pixel by pixel."""
    return np.frombuffer(bytearray(image.tobytes("raw", "RGB")), np.uint8).reshape(image.height, image.width, 3)


def _region(photo: Tiled, k: int, left: int, top: int, right: int, bottom: int) -> Region:
    """At least the pixels [top, bottom) × [left, right) of level k; only the tiles that they touch are decoded."""
    if _has_pieces(photo):
        try:
            return _joined_pieces(photo, k, left, top, right, bottom)
        except (jpeg_pieces.NoPieces, imagecodecs.Jpeg8Error, IndexError):
            pass  # an older dataset, or a damaged tile: what follows reads it, or names it
    return _whole_tiles(photo, k, left, top, right, bottom)


def _joined_pieces(photo: Tiled, k: int, left: int, top: int, right: int, bottom: int) -> Region:
    """The region, widened to whole pieces, by one call of the decoder; by two where the last column is narrow."""
    level, t = photo.levels[k], photo.tile_px
    across, lines = ceil(level.width / t), range(top // t, ceil(bottom / t))
    grid_top = lines.start * t
    rows = range((top - grid_top) // BLOCK_PX, ceil((bottom - grid_top) / BLOCK_PX))
    heights = [min(t, level.height - line * t) for line in lines]
    parts: list[np.ndarray] = []
    first_px = left
    for columns in _joinable(level, t, range(left // t, ceil(right / t))):
        widths = [min(t, level.width - column * t) for column in columns]
        grid_left, width = columns.start * t, sum(widths)
        grid = [[photo.tiles[level.first_tile + line * across + column] for column in columns] for line in lines]
        pieces = range(max(0, left - grid_left) // PIECE_PX, ceil(min(right - grid_left, width) / PIECE_PX))
        if width % PIECE_PX:  # a lone column of which a piece is a whole row
            pieces = range(1)
        if not parts:
            first_px = grid_left + pieces.start * PIECE_PX
        parts.append(jpeg_pieces.decode_region(grid, heights, widths, rows, pieces))
    pixels = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)
    image = Image.frombuffer("RGBX", (pixels.shape[1], pixels.shape[0]), pixels, "raw", "RGBX", 0, 1)  # no copy
    return Region(image, first_px, grid_top + rows.start * BLOCK_PX)


def _joinable(level: Level, t: int, columns: range) -> list[range]:
    """Columns of tiles that one JPEG can hold: a last one whose width is no multiple of a piece stands alone."""
    if columns.stop * t <= level.width or level.width % PIECE_PX == 0 or len(columns) == 1:
        return [columns]
    return [columns[:-1], columns[-1:]]


def _whole_tiles(photo: Tiled, k: int, left: int, top: int, right: int, bottom: int) -> Region:
    level, t = photo.levels[k], photo.tile_px
    across = ceil(level.width / t)
    region = Image.new("RGB", (right - left, bottom - top))
    for row in range(top // t, ceil(bottom / t)):
        for column in range(left // t, ceil(right / t)):
            sides = min(t, level.width - column * t), min(t, level.height - row * t)
            tile = _tile(photo, level.first_tile + row * across + column, sides)
            region.paste(tile, (column * t - left, row * t - top))
    return Region(region, left, top)


def _tile(photo: Tiled, number: int, sides: tuple[int, int]) -> Image.Image:
    try:
        tile = decode(photo.tiles[number], photo.codec)
    except DECODER_ERRORS as error:
        raise DatasetError(f"{photo.name}: tile {number} cannot be decoded as {photo.codec}; expected "
                           f"{sides[0]}x{sides[1]} pixels; the shard is damaged: delete it and get it again") from error
    if tile.size != sides:
        raise DatasetError(f"{photo.name}: tile {number} has {tile.width}x{tile.height} pixels; expected "
                           f"{sides[0]}x{sides[1]}; the shard is damaged: delete it and get it again")
    return tile
