"""The first picture of a TIFF → PIL image, strip by strip.

The directory is read here and only the strips and tiles go through codecs (zlib, and LZW, PackBits, JPEG, ZSTD and WebP
of imagecodecs): libtiff's `tiff_decode` turns pictures a second time, gives CMYK as RGB without its profile, and hands out
memory that a short strip never filled. Memory: the image (PIL holds RGB and CMYK in 4 bytes a pixel), and of one strip or
tile the samples twice and the levels once or twice; in a file of one strip that is all of the picture.

Read: BigTIFF too; 1, 8 and 16 bits; grey, palette, RGB, CMYK, YCbCr inside JPEG; alpha; any order of bytes and planes.
Not read, and refused with a word for each: samples that are floating-point or have a sign (no rule says which value is white),
other depths, other compressions, thumbnails, inks other than CMYK.
Source: TIFF 6.0; Technical Note 2 (JPEG); BigTIFF design.
"""

import struct
import zlib
from itertools import product
from typing import Literal, NamedTuple

import imagecodecs
import numpy as np
from PIL import Image

from infd.data.jpeg import MAX_SCANS, frame
from infd.errors import PhotoError

MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
FIELD_TYPES = {1: "u1", 3: "u2", 4: "u4", 7: "u1", 13: "u4", 16: "u8", 18: "u8"}
"""Types of fields that are numbers without a sign (or bytes) → NumPy."""
MAX_FIELDS = 4096
BAND_PX = 1 << 20
GREY_INVERTED, GREY, RGB, PALETTE, CMYK, YCBCR = 0, 1, 2, 3, 5, 6
SAMPLES = {GREY_INVERTED: 1, GREY: 1, RGB: 3, PALETTE: 1, CMYK: 4, YCBCR: 3}
MODES = {GREY_INVERTED: "L", GREY: "L", RGB: "RGB", PALETTE: "RGB", CMYK: "CMYK", YCBCR: "RGB"}
MAX_GROWTH, JPEG_MAX_GROWTH, HEAD_BYTES = 2, 4, 4096
"""No codec here makes noise twice as long (a JPEG: at most 27 bits a sample), tables and headers aside: what a block has
beyond that is not read, or many small blocks that share their bytes would take hours."""
NONE, LZW, JPEG, DEFLATE, DEFLATE_OLD, PACKBITS, ZSTD, WEBP = 1, 5, 7, 8, 32946, 32773, 50000, 50001


class Layout(NamedTuple):
    """What the directory says, checked."""

    width: int
    height: int
    order: Literal["<", ">"]
    bits: int
    samples: int
    colour: int
    compression: int
    predictor: int
    planar: bool
    block: tuple[int, int]
    """Rows and columns of a strip or tile."""
    tiled: bool
    offsets: np.ndarray
    counts: np.ndarray
    alpha: int
    """1: colours are multiplied by the fourth (second) sample; 2: they are not; 0: no alpha."""
    palette: np.ndarray | None
    tables: bytes | None
    profile: bytes | None
    orientation: int


def layout(data: bytes) -> Layout:
    """The first directory. Raises PhotoError: corrupt, truncated, unsupported."""
    try:
        return _layout(data)
    except (struct.error, KeyError, IndexError, ValueError, OverflowError) as error:
        raise PhotoError("corrupt", "TIFF directory") from error


def read(data: bytes, it: Layout) -> Image.Image:
    """The pixels: mode L, RGB or CMYK, alpha laid over white, 16-bit samples by their high byte. Not turned."""
    image = Image.new(MODES[it.colour], (it.width, it.height))
    rows, columns = it.block
    places = list(product(range(0, it.height, rows), range(0, it.width, columns)))
    planes = it.samples if it.planar else 1
    for number, (top, left) in enumerate(places):
        kept_rows, kept = min(rows, it.height - top), min(columns, it.width - left)
        coded_rows = rows if it.tiled else kept_rows
        parts = [_block(data, it, number + plane * len(places), coded_rows) for plane in range(planes)]
        block = parts[0] if planes == 1 else np.concatenate(parts, -1)
        image.paste(Image.fromarray(_colours(block[:kept_rows, :kept], it), image.mode), (left, top))
    return image


# ---------------------------------------------------------------- directory


def _fields(data: bytes) -> tuple[Literal["<", ">"], dict[int, np.ndarray]]:
    """Order of bytes, and tag → numbers. Of a repeated tag the first counts; other types of field are left out."""
    order = "<" if data[:2] == b"II" else ">"
    big = data[2:4] in (b"+\0", b"\0+")
    (start,) = struct.unpack_from(order + ("Q" if big else "I"), data, 8 if big else 4)
    if start >= len(data):
        raise PhotoError("truncated", "TIFF directory")
    (count,) = struct.unpack_from(order + ("Q" if big else "H"), data, start)
    if count > MAX_FIELDS:
        raise ValueError("too many fields")
    entry, inline, head = (20, 8, 8) if big else (12, 4, 2)
    fields: dict[int, np.ndarray] = {}
    for at in range(start + head, start + head + entry * count, entry):
        tag, kind, length = struct.unpack_from(order + ("HHQ" if big else "HHI"), data, at)
        if kind not in FIELD_TYPES or tag in fields:
            continue
        dtype = np.dtype(FIELD_TYPES[kind]).newbyteorder(order)
        place = at + entry - inline
        if length * dtype.itemsize > inline:
            (place,) = struct.unpack_from(order + ("Q" if big else "I"), data, place)
        if place + length * dtype.itemsize <= len(data):  # a field outside the file is no field
            fields[tag] = np.frombuffer(data, dtype, length, place)
    return order, fields


def _layout(data: bytes) -> Layout:
    order, fields = _fields(data)

    def number(tag: int, default: int | None = None) -> int:
        found = fields.get(tag)
        if found is None or not len(found):
            if default is None:
                raise PhotoError("truncated" if tag in (273, 279) else "corrupt", "TIFF directory")
            return default
        return int(found[0])

    width, height, samples = number(256), number(257), number(277, 1)
    bits, colour, compression = number(258, 1), number(262, GREY), number(259, NONE)
    tiled = 322 in fields
    planar = number(284, 1) == 2 and samples > 1
    block = (number(323), number(322)) if tiled else (max(1, min(number(278, height), height)), width)
    extra = fields.get(338, np.zeros(0, np.uint16))
    alpha = int(extra[0]) if len(extra) and int(extra[0]) in (1, 2) else 0
    _refuse_unsupported(
        thumbnail=number(254, 0) & 1, floats=number(339, 1) == 3, format=number(339, 1) not in (1, 3),
        depth=number(32997, 1) != 1, fill=number(266, 1) != 1,
        colour=colour not in SAMPLES or colour == YCBCR and compression != JPEG, ink=number(332, 1) != 1,
        **{f"compression {compression}": compression not in (NONE, LZW, JPEG, DEFLATE, DEFLATE_OLD, PACKBITS, ZSTD, WEBP)},
        predictor=number(317, 1) not in (1, 2), bits=bits not in (1, 8, 16) or len(np.unique(fields.get(258, [1]))) > 1)
    if not SAMPLES[colour] <= samples <= SAMPLES[colour] + 4:
        raise ValueError("samples")
    _refuse_unsupported(bits=bits == 1 and (samples > 1 or number(317, 1) == 2) or bits != 8 and compression in (JPEG, WEBP)
                        or colour == PALETTE and bits == 16,
                        webp=compression == WEBP and (colour != RGB or samples > 4 or planar))
    if width < 1 or height < 1 or (tiled and min(block) < 16):
        raise ValueError("sides")
    if 347 in fields and fields[347].nbytes > HEAD_BYTES:  # read again for every block; full tables have 2.8 KB
        raise ValueError("tables")
    palette = None
    if colour == PALETTE:
        palette = (fields[320][:3 << bits].reshape(3, 1 << bits) >> 8).astype(np.uint8).T  # (levels, 3)
    tables, profile = fields.get(347), fields.get(34675)
    return Layout(width, height, order, bits, samples, colour, compression, number(317, 1) if compression in
                  (LZW, DEFLATE, DEFLATE_OLD, ZSTD) else 1, planar, block, tiled, *_places(fields, tiled, data), alpha, palette,
                  tables.tobytes() if tables is not None else None, profile.tobytes() if profile is not None else None,
                  number(274, 1))


def _places(fields: dict[int, np.ndarray], tiled: bool, data: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Offsets and byte counts of all blocks; without counts a single block reaches to the end of the file."""
    offsets = fields[324 if tiled and 324 in fields else 273]
    counts = fields.get(325 if tiled and 325 in fields else 279)
    if counts is None and len(offsets) == 1:
        counts = np.array([max(0, len(data) - int(offsets[0]))])
    if counts is None or len(counts) < len(offsets):
        raise ValueError("counts")
    return offsets, counts


def _refuse_unsupported(**found: object) -> None:
    for name, is_so in found.items():
        if is_so:
            raise PhotoError("unsupported", f"TIFF {name}")


# ---------------------------------------------------------------- blocks


def _block(data: bytes, it: Layout, number: int, rows: int) -> np.ndarray:
    """Samples (rows, columns, C) uint8 of a strip or tile; C is 1 in planar files."""
    if number >= len(it.offsets):
        raise PhotoError("truncated", "TIFF strips")
    start, count = int(it.offsets[number]), int(it.counts[number])
    if start + count > len(data) or not count:
        raise PhotoError("truncated", "TIFF strips")
    columns, samples = it.block[1], 1 if it.planar else it.samples
    if it.compression in (JPEG, WEBP):
        growth = JPEG_MAX_GROWTH if it.compression == JPEG else MAX_GROWTH
        coded = data[start:start + min(count, growth * it.block[0] * columns * samples + HEAD_BYTES)]
        if it.compression == JPEG:
            return _jpeg(coded, it, rows, columns, samples)
        out = np.empty((rows, columns, samples), np.uint8)  # of other sides than it the decoder refuses a picture
        return imagecodecs.webp_decode(coded, out=out)
    line = -(-columns * samples * it.bits // 8)
    raw = _inflated(data[start:start + min(count, MAX_GROWTH * rows * line + 64)], it.compression, rows * line)
    if len(raw) < rows * line:
        raise PhotoError("truncated", "TIFF strips")
    if it.bits == 1:
        bits = np.unpackbits(np.frombuffer(raw, np.uint8, rows * line).reshape(rows, line), axis=1)[:, :columns, None]
        return bits if it.colour == PALETTE else bits * 255
    dtype = np.dtype(np.uint8) if it.bits == 8 else np.dtype(np.uint16).newbyteorder(it.order)
    values = np.frombuffer(raw, dtype, rows * columns * samples).reshape(rows, columns, samples)
    if it.bits == 8 and it.predictor == 1:
        return values
    out = np.empty(values.shape, np.uint8)
    band = max(1, BAND_PX // columns)
    for top in range(0, rows, band):
        part = values[top:top + band]
        if it.predictor == 2:
            part = np.cumsum(part, axis=1, dtype=dtype.newbyteorder("="))  # wraps, as the predictor does
        out[top:top + band] = part if it.bits == 8 else part >> 8
    return out


def _inflated(coded: bytes, compression: int, size: int) -> bytes | bytearray:
    """The first `size` bytes, or fewer where there are no more: a bomb stops at `size`."""
    if compression == NONE:
        return coded[:size]
    if compression == LZW:
        return imagecodecs.lzw_decode(coded, out=size)
    if compression == PACKBITS:
        return imagecodecs.packbits_decode(coded, out=size)
    if compression == ZSTD:
        return imagecodecs.zstd_decode(coded, out=size)
    return zlib.decompressobj().decompress(coded, size)


def _jpeg(coded: bytes, it: Layout, rows: int, columns: int, samples: int) -> np.ndarray:
    """A JPEG block; `out` makes the decoder refuse one of other sides than the directory says, before it decodes."""
    space = {GREY: "grayscale", GREY_INVERTED: "grayscale", RGB: "rgb", YCBCR: "ycbcr", CMYK: "cmyk"}
    coded_as = "grayscale" if samples == 1 else space[it.colour]
    head = frame(coded)
    if not it.tiled and head.height == it.block[0]:  # some writers pad the last strip
        rows = head.height
    if head.scans > MAX_SCANS:
        raise PhotoError("bomb", "TIFF JPEG scans")
    out = np.zeros((rows, columns) if samples == 1 else (rows, columns, samples), np.uint8)
    imagecodecs.jpeg8_decode(coded, tables=it.tables, colorspace=coded_as, out=out,
                             outcolorspace="rgb" if coded_as == "ycbcr" else coded_as)
    return out.reshape(rows, columns, samples)


def _colours(block: np.ndarray, it: Layout) -> np.ndarray:
    """Samples (H, W, C) → levels (H, W), (H, W, 3) or (H, W, 4 of CMYK)."""
    used = SAMPLES[it.colour]
    levels = block[..., :used]
    if it.palette is not None:
        levels = it.palette[levels[..., 0]]
    elif it.colour == GREY_INVERTED:
        levels = 255 - levels
    if it.alpha and it.colour != CMYK and it.samples > used:
        levels = _over_white(levels, block[..., used:used + 1], multiplied=it.alpha == 1)
    return np.ascontiguousarray(levels[..., 0] if levels.shape[-1] == 1 else levels)


def _over_white(levels: np.ndarray, alpha: np.ndarray, *, multiplied: bool) -> np.ndarray:
    wide = levels.astype(np.uint16)
    white = 255 - alpha.astype(np.uint16)
    if multiplied:
        return np.minimum(wide + white, 255).astype(np.uint8)
    return ((wide * alpha + 255 * white + 127) // 255).astype(np.uint8)
