"""One source file (JPEG, PNG, WebP) → an upright 8-bit sRGB photo. Every input is hostile until decoded.

Sides are read from the header by the plugin of the format alone, and limits hold before pixels are allocated;
Pillow's own limit (a global, made for warnings) plays no part. Truncated files are refused. Transparent pixels lie on
white; 16-bit samples keep their high byte; of an animation the first picture counts. ICC profiles of the matrix kind
(Display P3, Adobe RGB, ProPhoto, grey) are converted by `infd.data.icc`; others, CMYK above all, are left as numbers.
"""

import struct
import zlib
from io import BytesIO

import numpy as np
from PIL import Image, JpegImagePlugin, PngImagePlugin, WebPImagePlugin
from PIL.Image import Transpose

from infd.data import icc
from infd.errors import PhotoError

REASONS = {
    "empty": "the file has no bytes",
    "unsupported": "the file is no JPEG, PNG or WebP",
    "corrupt": "the decoder cannot read the header or the pixels",
    "truncated": "the file ends before its last pixel",
    "too_small": "the short side is below min_side_px",
    "too_many_pixels": "more pixels than max_pixels, or tiles of more than 2 GiB",
    "too_many_bytes": "the file has more bytes than max_bytes",
    "changed": "the file changed between plan and read; the next ingest sees it",
    "unreadable": "the file is gone, the store refuses to give it, or memory is too small for it",
    "duplicate": "another photo of the dataset has the same bytes",
}
"""Why a source file is no photo: the closed vocabulary of `rejects`, and what each word means."""

ORIENTATION = 0x0112
UPRIGHT = {2: Transpose.FLIP_LEFT_RIGHT, 3: Transpose.ROTATE_180, 4: Transpose.FLIP_TOP_BOTTOM, 5: Transpose.TRANSPOSE,
           6: Transpose.ROTATE_270, 7: Transpose.TRANSVERSE, 8: Transpose.ROTATE_90}
"""EXIF orientation → what makes the picture upright. Source: EXIF 2.3, tag 274."""

DECODER_ERRORS = (OSError, SyntaxError, ValueError, TypeError, KeyError, IndexError, EOFError, OverflowError,
                  AttributeError, RuntimeError, struct.error, zlib.error)
"""What Pillow's decoders raise over hostile bytes, as a fuzz test sees them; anything else is our bug."""


def decode(data: bytes, *, max_pixels: int, min_side_px: int) -> Image.Image:
    """The photo in `data`: mode RGB, upright, sRGB. `info["format"]` is JPEG, PNG or WEBP.

    Raises PhotoError with a reason of REASONS; its detail is fixed text and numbers, equal in equal runs.
    """
    kind = sniff(data)
    if kind == "WEBP":
        check_sides(*webp_sides(data), max_pixels=max_pixels, min_side_px=min_side_px)
    image = _open(data, kind)
    check_sides(*image.size, max_pixels=max_pixels, min_side_px=min_side_px)
    try:
        image.load()
    except DECODER_ERRORS as error:
        raise _refused(error, "pixels", kind) from error
    profile = image.info.get("icc_profile")
    upright = UPRIGHT.get(_orientation(image))
    rgb = icc.to_srgb(_rgb(image), profile)
    if upright is not None:
        rgb = rgb.transpose(upright)
    rgb.info = {"format": kind}
    return rgb


def sniff(data: bytes) -> str:
    """JPEG, PNG or WEBP by the first bytes; names and content types are not trusted."""
    if not data:
        raise PhotoError("empty")
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    raise PhotoError("unsupported")


def check_sides(width: int, height: int, *, max_pixels: int, min_side_px: int) -> None:
    """Raise PhotoError unless the sides lie within the limits."""
    if min(width, height) < min_side_px:
        raise PhotoError("too_small", f"{width}x{height}, short side below {min_side_px}")
    if width * height > max_pixels:
        raise PhotoError("too_many_pixels", f"{width}x{height}, more than {max_pixels} pixels")


def webp_sides(data: bytes) -> tuple[int, int]:
    """Width and height from a WebP header, which Pillow gives only after it has allocated the canvas.

    Source: RFC 9649, sections 2.5 to 2.7.
    """
    chunk, body = data[12:16], data[20:30]
    if len(body) < 10:
        raise PhotoError("truncated", "WEBP header")
    if chunk == b"VP8X":
        return 1 + int.from_bytes(body[4:7], "little"), 1 + int.from_bytes(body[7:10], "little")
    if chunk == b"VP8L":
        bits = int.from_bytes(body[1:5], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if chunk == b"VP8 ":
        return int.from_bytes(body[6:8], "little") & 0x3FFF, int.from_bytes(body[8:10], "little") & 0x3FFF
    raise PhotoError("corrupt", "WEBP header")


def _open(data: bytes, kind: str) -> Image.Image:
    """The plugin of the format on its own: no other format is tried, no global limit is asked."""
    plugin = {"JPEG": JpegImagePlugin.JpegImageFile, "PNG": PngImagePlugin.PngImageFile,
              "WEBP": WebPImagePlugin.WebPImageFile}[kind]
    try:
        return plugin(BytesIO(data))
    except DECODER_ERRORS as error:
        raise _refused(error, "header", kind) from error


def _refused(error: Exception, part: str, kind: str) -> PhotoError:
    """Pillow's message is looked at for one word and not kept: it may hold an address of memory."""
    reason = "truncated" if "truncated" in str(error).lower() or isinstance(error, EOFError) else "corrupt"
    return PhotoError(reason, f"{kind} {part}")


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation; 1 (upright) where there is none, or where the EXIF block is damaged."""
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except DECODER_ERRORS:
        return 1


def _rgb(image: Image.Image) -> Image.Image:
    """Any mode that the three decoders make → RGB over white; a grey picture stays L until its profile is applied."""
    if image.mode.startswith("I"):
        return _grey16(image)
    if "transparency" in image.info or image.mode in ("LA", "PA", "RGBA", "La", "RGBa"):
        rgba = image.convert("RGBA")
        white = Image.new("RGB", image.size, (255, 255, 255))
        white.paste(rgba.convert("RGB"), mask=rgba.getchannel("A"))
        return white
    return image if image.mode in ("RGB", "L") else image.convert("L" if image.mode == "1" else "RGB")


def _grey16(image: Image.Image) -> Image.Image:
    """16-bit grey → L by the high byte, as Pillow does for 16-bit RGB; the transparent value becomes white."""
    values = np.asarray(image)
    grey = (values >> 8).clip(0, 255).astype(np.uint8)
    if "transparency" in image.info:
        grey[values == image.info["transparency"]] = 255
    return Image.fromarray(grey, "L")
