"""ICC profiles → sRGB, by the Little CMS of the imagecodecs wheel.

The wheel is pinned and carries its own library, whose pixel loops are integer arithmetic over tables, so a photo gives
the same bytes on every machine; a Pillow built elsewhere may have another Little CMS or none. Matrix, grey, table-based
and CMYK profiles are converted, by relative colorimetry with black point compensation, as picture editors show them. A profile
that is not understood, or of another colour space than the pixels, leaves the numbers as they are.
"""

import functools

import imagecodecs
import numpy as np
from PIL import Image

STRIP_PX = 1 << 22
"""Pixels converted at once: opening a profile costs up to 0.2 s, a strip up to 28 MB."""
MAX_PROFILE_BYTES = 8 << 20
"""A longer profile is not looked at; real ones end below 4 MB."""
SPACES = {"L": b"GRAY", "RGB": b"RGB ", "CMYK": b"CMYK"}
"""PIL mode → the colour space that a profile for it names. Source: ICC.1:2022, table 19."""
ENCODED_PRIMARIES = {9: (0.708, 0.292, 0.170, 0.797, 0.131, 0.046), 12: (0.680, 0.320, 0.265, 0.690, 0.150, 0.060)}
"""Code of the primaries in AVIF and HEIC → their xy: BT.2020 and Display P3. Source: ITU-T H.273, table 2."""
D65 = (0.3127, 0.3290)
COLORIMETRIC = int(imagecodecs.CMS.INTENT.RELATIVE_COLORIMETRIC)
FLAGS = int(imagecodecs.CMS.FLAGS.BLACKPOINTCOMPENSATION | imagecodecs.CMS.FLAGS.NOCACHE)


def to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """`image` (L, RGB or CMYK) as RGB in sRGB. Without a profile, or with one that is not understood, numbers are kept.

    Law: a profile under which no level of the test cube moves by more than one changes no pixel. The image given may
    be changed in place.
    """
    profile = bytes(profile or b"")[:MAX_PROFILE_BYTES + 1]
    if image.mode == "L" and profile[16:20] == SPACES["RGB"]:
        image = image.convert("RGB")
    if not 128 < len(profile) <= MAX_PROFILE_BYTES or profile[16:20] != SPACES[image.mode] or not _moves(profile, image.mode):
        return image if image.mode == "RGB" else image.convert("RGB")
    out = image if image.mode == "RGB" else Image.new("RGB", image.size)
    rows = max(1, STRIP_PX // image.width)
    for top in range(0, image.height, rows):
        box = (0, top, image.width, min(image.height, top + rows))
        out.paste(Image.fromarray(_converted(np.asarray(image.crop(box)), profile, image.mode)), box)
    return out


def of_code_points(primaries: int, transfer: int) -> bytes | None:
    """The profile that the code points of an AVIF or HEIC name; None: sRGB, unknown, or a transfer other than sRGB's."""
    return _encoded_profile(primaries) if transfer == 13 and primaries in ENCODED_PRIMARIES else None


@functools.cache
def _encoded_profile(primaries: int) -> bytes:
    x = np.arange(4096) / 4095
    linear = np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)
    return imagecodecs.cms_profile("rgb", whitepoint=D65, primaries=ENCODED_PRIMARIES[primaries],
                                   transferfunction=np.round(linear * 65535).astype(np.uint16))


SRGB = functools.cache(functools.partial(imagecodecs.cms_profile, "srgb"))


def _converted(samples: np.ndarray, profile: bytes, mode: str) -> np.ndarray:
    """(H, W) or (H, W, C) uint8 in `profile` → (H, W, 3) uint8 in sRGB. Raises RuntimeError or ValueError."""
    space = {"L": "gray", "RGB": "rgb", "CMYK": "cmyk"}[mode]
    return imagecodecs.cms_transform(samples, profile, SRGB(), colorspace=space, outcolorspace="rgb",
                                     intent=COLORIMETRIC, flags=FLAGS)


@functools.lru_cache(maxsize=8)
def _moves(profile: bytes, mode: str) -> bool:
    """Whether the profile is understood and moves a level by more than one; else the stored numbers are the better ones."""
    levels = np.arange(0, 256, 15, dtype=np.uint8)
    cube = {"L": np.arange(256, dtype=np.uint8)[None],  # (1, 256)
            "RGB": np.stack(np.meshgrid(levels, levels, levels), -1).reshape(1, -1, 3),
            "CMYK": np.zeros((1, 1, 4), np.uint8)}[mode]
    try:
        found = _converted(cube, profile, mode)
    except (RuntimeError, ValueError):
        return False
    if mode == "CMYK":
        return True
    expected = cube if mode == "RGB" else cube[..., None]
    return int(np.abs(found.astype(int) - expected).max()) > 1
