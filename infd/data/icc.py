"""ICC profiles of the matrix kind → sRGB, in NumPy.

Pillow converts profiles only where it was built with littlecms, so the same photo would give other bytes on another
machine. Nearly every profile inside a photo is of the matrix kind (three primaries and three curves: sRGB, Display P3,
Adobe RGB, ProPhoto) or grey with one curve, and those take a page. Others (CMYK, table based) are not converted.

Source: ICC.1:2010, sections 7.2, 9.2, 10.5 (curv), 10.15 (para), 10.18 (XYZ); sRGB: IEC 61966-2-1, adapted to D50.
"""

import functools
import struct

import numpy as np
from PIL import Image

SRGB_TO_XYZ = np.array([[0.4360747, 0.3850649, 0.1430804],
                        [0.2225045, 0.7168786, 0.0606169],
                        [0.0139322, 0.0971045, 0.7141733]])
"""Linear sRGB → XYZ under D50, the profiles' common ground."""
ENCODE_STEPS = 1 << 14
"""Entries of the table linear → sRGB; the error is below 0.3 levels but in the darkest five, below 1 there."""
STRIP_PX = 1 << 20
MAX_TAGS = 100


def to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """`image` (L or RGB) as RGB in sRGB. Without a profile, or with one that is not understood, numbers are kept."""
    if profile:
        lookup, matrix = _parsed(bytes(profile), image.mode)
        if lookup is not None:
            return _converted(image, lookup, matrix)
    return image if image.mode == "RGB" else image.convert("RGB")


@functools.lru_cache(maxsize=64)
def _parsed(profile: bytes, mode: str) -> tuple[np.ndarray | None, np.ndarray | None]:
    """(curves (C, 256) → linear, matrix (3, 3) to linear sRGB or None for grey); (None, None): leave the numbers."""
    try:
        space, tags = profile[16:20], _tags(profile)
        if mode == "L" and space == b"GRAY":
            return _curve(tags[b"kTRC"])[None], None
        if mode != "RGB" or space != b"RGB " or b"A2B0" in tags:
            return None, None
        curves = np.stack([_curve(tags[name]) for name in (b"rTRC", b"gTRC", b"bTRC")])
        primaries = np.stack([_xyz(tags[name]) for name in (b"rXYZ", b"gXYZ", b"bXYZ")], axis=1)
        matrix = np.linalg.inv(SRGB_TO_XYZ) @ primaries
    except (KeyError, struct.error, ValueError, IndexError, OverflowError):
        return None, None
    if not (np.isfinite(curves).all() and np.isfinite(matrix).all()) or _is_srgb(curves, matrix):
        return None, None
    return curves, matrix


def _tags(profile: bytes) -> dict[bytes, bytes]:
    (count,) = struct.unpack_from(">I", profile, 128)
    if count > MAX_TAGS:
        raise ValueError("too many tags")
    entries = (struct.unpack_from(">4sII", profile, 132 + 12 * i) for i in range(count))
    return {name: profile[offset:offset + size] for name, offset, size in entries}


def _xyz(tag: bytes) -> np.ndarray:
    if tag[:4] != b"XYZ ":
        raise ValueError("not an XYZ tag")
    return np.array(struct.unpack_from(">3i", tag, 8)) / 65536


def _curve(tag: bytes) -> np.ndarray:
    """Linear light (256,) of the sample values 0 … 255."""
    x = np.arange(256) / 255
    if tag[:4] == b"para":
        return _parametric(tag, x)
    if tag[:4] != b"curv":
        raise ValueError("not a curve")
    (count,) = struct.unpack_from(">I", tag, 8)
    if count == 0:
        return x
    values = np.frombuffer(tag, ">u2", count, 12).astype(np.float64)
    return x ** (values[0] / 256) if count == 1 else np.interp(x, np.linspace(0, 1, count), values / 65535)


def _parametric(tag: bytes, x: np.ndarray) -> np.ndarray:
    """Curve kinds 0 to 4: (a x + b)^g + e where x ≥ d, else c x + f."""
    (kind,) = struct.unpack_from(">H", tag, 8)
    given = [value / 65536 for value in struct.unpack_from(f">{(1, 3, 4, 5, 7)[kind]}i", tag, 12)]
    g, a, b, c, d, e, f = [*given, *(1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0)[len(given):]]
    if kind in (1, 2):  # these two begin where the base reaches 0, and 2 adds its constant on both sides
        if a == 0:
            raise ValueError("a curve without slope")
        e = f = given[3] if kind == 2 else 0.0
        c, d = 0.0, -b / a
    with np.errstate(all="ignore"):  # a hostile curve may overflow; the caller looks for numbers that are not finite
        return np.where(x >= d, np.maximum(a * x + b, 0) ** g + e, c * x + f)


def _encode_table() -> np.ndarray:
    """sRGB levels (ENCODE_STEPS + 1,) of linear light in [0, 1]."""
    linear = np.arange(ENCODE_STEPS + 1) / ENCODE_STEPS
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * np.maximum(linear, 1e-9) ** (1 / 2.4) - 0.055)
    return np.round(encoded * 255).astype(np.uint8)


ENCODED = functools.cache(_encode_table)


def _encoded(linear: np.ndarray) -> np.ndarray:
    return ENCODED()[np.round(linear.clip(0, 1) * ENCODE_STEPS).astype(np.int32)]


def _is_srgb(curves: np.ndarray, matrix: np.ndarray) -> bool:
    """True where conversion would move no level by more than one: then the stored pixels are the better ones."""
    cube = np.stack(np.meshgrid(*[np.arange(0, 256, 15)] * 3), -1).reshape(-1, 3)
    linear = np.stack([curves[c][cube[:, c]] for c in range(3)], -1) @ matrix.T
    return int(np.abs(_encoded(linear).astype(int) - cube).max()) <= 1


def _converted(image: Image.Image, curves: np.ndarray, matrix: np.ndarray | None) -> Image.Image:
    if matrix is None:
        return image.point(_encoded(curves[0]).tolist()).convert("RGB")
    out = Image.new("RGB", image.size)
    rows = max(1, STRIP_PX // image.width)
    light, to_linear = curves.astype(np.float32), matrix.T.astype(np.float32)
    for top in range(0, image.height, rows):
        box = (0, top, image.width, min(image.height, top + rows))
        strip = np.asarray(image.crop(box))  # (H, W, 3)
        linear = np.stack([light[c][strip[..., c]] for c in range(3)], -1) @ to_linear
        out.paste(Image.fromarray(_encoded(linear), "RGB"), box)
    return out
