"""The box structure of AVIF and HEIC files: what the picture is, before any decoder sees it.

Only the primary item is looked at: its codec, its sides (also of a grid's tiles), its colour, its clean aperture and how
it is turned.
Source: ISO/IEC 14496-12 (boxes, clap), 23008-12 (HEIF: items, properties, irot, imir), MIAF 23000-22 (grids).
"""

import struct
from collections.abc import Iterator
from fractions import Fraction
from typing import NamedTuple

from PIL.Image import Transpose

from infd.errors import PhotoError

BRANDS = {b"avif", b"avis", b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}
CODECS = {b"av01": "AVIF", b"hvc1": "HEIC", b"hev1": "HEIC"}
MAX_BOXES = 100_000
"""More boxes, items or associations than this in one file are refused; a 300 Mpx grid of 512 px tiles has 1,200 items."""
TURN = {1: Transpose.ROTATE_90, 2: Transpose.ROTATE_180, 3: Transpose.ROTATE_270}
"""irot: quarter turns against the clock."""
MIRROR = {0: Transpose.FLIP_TOP_BOTTOM, 1: Transpose.FLIP_LEFT_RIGHT}
"""imir: about the horizontal axis, about the vertical axis. Source: 23008-12:2022, 6.5.12, as libavif and libheif read it."""


class Still(NamedTuple):
    """The primary picture of a file. `sides` holds (width, height) of the picture, then of a grid's tiles."""

    kind: str
    sides: list[tuple[int, int]]
    crop: tuple[int, int, int, int] | None
    """What counts of the picture before it is turned: left, top, right, bottom."""
    upright: list[Transpose]
    profile: bytes | None
    code_points: tuple[int, int] | None
    twelve_bit: bool


def is_isobmff(data: bytes) -> bool:
    """Whether the file names a brand of still pictures."""
    if data[4:8] != b"ftyp":
        return False
    size = min(int.from_bytes(data[:4], "big"), 1024)
    return any(data[at:at + 4] in BRANDS for at in (8, *range(16, size, 4)))


def still(data: bytes) -> Still:
    """What the boxes say of the primary picture. Raises PhotoError: corrupt, truncated, unsupported."""
    try:
        return _still(memoryview(data))
    except (struct.error, IndexError, KeyError, ValueError) as error:
        raise PhotoError("corrupt", "HEIF boxes") from error


def _still(data: memoryview) -> Still:
    meta = _only(data, b"meta")
    if meta is None:
        raise PhotoError("unsupported", "a HEIF file without a still picture")
    inner = dict(reversed([(name, body) for name, body in _boxes(meta[4:])]))  # of a repeated box the first counts
    version = inner[b"pitm"][0]
    (primary,) = struct.unpack_from(">I" if version else ">H", inner[b"pitm"], 4)
    types = _types(inner[b"iinf"])
    tiles = _tiles(inner.get(b"iref"), primary) if types[primary] == b"grid" else []
    leaf = tiles[0] if tiles else primary
    if types[leaf] not in CODECS:
        raise PhotoError("unsupported", "a HEIF picture that is neither AV1 nor HEVC")
    owned = _properties(inner[b"iprp"])
    own = owned.get(primary, [])
    sides = [_sides(owned.get(item, [])) for item in dict.fromkeys([primary, *tiles])]
    profile, code_points = _colour(own or [], owned.get(leaf, []))
    coded = dict(owned.get(leaf, [])).get(b"av1C", b"\0\0\0\0")
    names = [name for name, _ in own if name in (b"clap", b"irot", b"imir")]
    if b"clap" in names[1:]:
        raise PhotoError("unsupported", "a HEIF picture with a clean aperture behind a turn")
    crop = _crop(dict(own)[b"clap"], *sides[0]) if names[:1] == [b"clap"] else None
    upright = [turn for name, body in own for turn in _turns(name, body)]
    return Still(CODECS[types[leaf]], sides, crop, upright, profile, code_points, bool(coded[2] & 0x20))


def _boxes(data: memoryview, first: int = 0) -> Iterator[tuple[bytes, memoryview]]:
    """(type, body) of the boxes that stand one after the other."""
    at = first
    for _ in range(MAX_BOXES):
        if at + 8 > len(data):
            return
        size, name = struct.unpack_from(">I4s", data, at)
        head = 8
        if size == 1:
            (size,) = struct.unpack_from(">Q", data, at + 8)
            head = 16
        elif size == 0:
            size = len(data) - at
        if size < head:
            raise ValueError("a box shorter than its head")
        if at + size > len(data) and name != b"mdat":
            raise PhotoError("truncated", "HEIF boxes")
        yield name, data[at + head:at + size]
        at += size
    raise ValueError("too many boxes")


def _only(data: memoryview, wanted: bytes) -> memoryview | None:
    return next((body for name, body in _boxes(data) if name == wanted), None)


def _types(iinf: memoryview) -> dict[int, bytes]:
    """Item → its type."""
    types = {}
    for name, body in _boxes(iinf, 8 if iinf[0] else 6):
        if name == b"infe" and body[0] in (2, 3):
            item, _, kind = struct.unpack_from(">HH4s" if body[0] == 2 else ">IH4s", body, 4)
            types[item] = kind
    return types


def _tiles(iref: memoryview | None, primary: int) -> list[int]:
    """The items that a grid is made of."""
    if iref is None:
        raise ValueError("a grid of nothing")
    letter = "I" if iref[0] else "H"
    for name, body in _boxes(iref, 4):
        source, count = struct.unpack_from(f">{letter}H", body)
        if name == b"dimg" and source == primary and count:
            return list(struct.unpack_from(f">{count}{letter}", body, struct.calcsize(f">{letter}H")))
    raise ValueError("a grid of nothing")


def _properties(iprp: memoryview) -> dict[int, list[tuple[bytes, bytes]]]:
    """Item → its properties (type, body), in the order in which they apply."""
    inner = list(_boxes(iprp))
    known = [(name, bytes(body)) for name, body in _boxes(dict(inner)[b"ipco"])]
    owned: dict[int, list[tuple[bytes, bytes]]] = {}
    for body in (body for name, body in inner if name == b"ipma"):
        long_item, wide = body[0] >= 1, body[3] & 1
        (count,) = struct.unpack_from(">I", body, 4)
        if count > MAX_BOXES:
            raise ValueError("too many associations")
        at = 8
        for _ in range(count):
            (item,) = struct.unpack_from(">I" if long_item else ">H", body, at)
            at += 4 if long_item else 2
            number = body[at]
            indices = struct.unpack_from(f">{number}{'H' if wide else 'B'}", body, at + 1)
            at += 1 + number * (2 if wide else 1)
            places = [index & (0x7FFF if wide else 0x7F) for index in indices]
            owned.setdefault(item, []).extend(known[place - 1] for place in places if place)
    return owned


def _sides(properties: list[tuple[bytes, bytes]]) -> tuple[int, int]:
    return struct.unpack_from(">II", dict(reversed(properties))[b"ispe"], 4)


def _colour(*owners: list[tuple[bytes, bytes]]) -> tuple[bytes | None, tuple[int, int] | None]:
    """(ICC profile, (primaries, transfer)) of the first owner that has them."""
    found = [body for properties in owners for name, body in properties if name == b"colr"]
    profile = next((body[4:] for body in found if body[:4] in (b"prof", b"rICC")), None)
    points = next((struct.unpack_from(">HH", body, 4) for body in found if body[:4] == b"nclx"), None)
    return profile, points


def _crop(clap: bytes, width: int, height: int) -> tuple[int, int, int, int]:
    """The box of a clean aperture: its sides and the distance of its centre from the picture's, each a fraction."""
    numbers = struct.unpack_from(">IIIIiIiI", clap)
    if 0 in numbers[1::2]:
        raise ValueError("a fraction without a value")
    wide, high, x, y = map(Fraction, numbers[::2], numbers[1::2])
    box = (x + (width - wide) / 2, y + (height - high) / 2, x + (width + wide) / 2, y + (height + high) / 2)
    if any(edge.denominator != 1 for edge in box):
        raise PhotoError("unsupported", "a HEIF picture with a clean aperture that cuts through pixels")
    if not (0 <= box[0] < box[2] <= width and 0 <= box[1] < box[3] <= height):
        raise ValueError("a clean aperture outside the picture")
    left, top, right, bottom = map(int, box)
    return left, top, right, bottom


def _turns(name: bytes, body: bytes) -> list[Transpose]:
    if name == b"irot" and body[0] & 3:
        return [TURN[body[0] & 3]]
    return [MIRROR[body[0] & 1]] if name == b"imir" else []
