"""One source file (JPEG, PNG, WebP, TIFF, AVIF, HEIC) → an upright 8-bit sRGB photo. Every input is hostile until decoded.

Sides are read from the header alone, by the plugin of the format or by our own reader, and limits hold before pixels
are allocated; Pillow's own limit (a global, made for warnings) plays no part. Truncated files are refused. Transparent
pixels lie on white; 16-bit samples keep their high byte; of an animation the first picture counts. ICC profiles are
converted by `infd.data.icc`; CMYK without one becomes RGB by (1 - C)(1 - K). What turns a picture is read once: in
JPEG, PNG, WebP and TIFF the EXIF orientation, in AVIF and HEIC the boxes irot and imir, where EXIF has no say.

Memory of `decode`, bytes a pixel of the photo beside the file, as tests measure it: JPEG and PNG 4, progressive JPEG up to
10, WebP 16, TIFF in strips or tiles 5, in one strip of 8 bits 14, of 16 bits 18, AVIF 8, of 10 bits 19; at least 9 where
a picture is turned, is CMYK, has alpha or a profile that is not sRGB's.
"""

import math
import struct
import zlib
from io import BytesIO
from typing import NamedTuple

import imagecodecs
import numpy as np
from PIL import Image, JpegImagePlugin, PngImagePlugin, WebPImagePlugin
from PIL.Image import Transpose

from infd.data import icc, isobmff, jpeg, tiff
from infd.errors import PhotoError

REASONS = {
    "empty": "the file has no bytes",
    "unsupported": "the file is no JPEG, PNG, WebP, TIFF, AVIF or HEIC, or of a kind of these that is not read",
    "corrupt": "the decoder cannot read the header or the pixels",
    "truncated": "the file ends before its last pixel",
    "too_small": "the short side is below min_side_px",
    "too_long": "the long side is more than max_aspect times the short side",
    "too_many_pixels": "more pixels than max_pixels, or tiles of more than 2 GiB",
    "too_many_bytes": "the file has more bytes than max_bytes",
    "bomb": "a JPEG of more than 100 scans, which would take far more time than its pixels are worth",
    "no_decoder": "a HEIC, and this machine has no decoder for it: install infd[heic]; the next ingest tries again",
    "changed": "the file changed between plan and read; the next ingest sees it",
    "unreadable": "the file is gone, the store refuses to give it, or memory is too small for it",
    "killed": "the process that reads it ended twice at this file (a crash of the decoder, or a kill for its memory)",
    "duplicate": "another photo of the dataset has the same bytes",
}
"""Why a source file is no photo: the closed vocabulary of `rejects`, and what each word means."""

ORIENTATION = 0x0112
UPRIGHT = {2: Transpose.FLIP_LEFT_RIGHT, 3: Transpose.ROTATE_180, 4: Transpose.FLIP_TOP_BOTTOM, 5: Transpose.TRANSPOSE,
           6: Transpose.ROTATE_270, 7: Transpose.TRANSVERSE, 8: Transpose.ROTATE_90}
"""EXIF orientation → what makes the picture upright. Source: EXIF 2.3, tag 274."""

BAND_PX = 1 << 20
AVIF_MAX_PIXELS = 1 << 28
"""libavif refuses more."""

DECODER_ERRORS = (OSError, SyntaxError, ValueError, TypeError, KeyError, IndexError, EOFError, OverflowError,
                  AttributeError, RuntimeError, struct.error, zlib.error)
"""What the decoders raise over hostile bytes, as a fuzz test sees them; anything else is our bug."""


class Limits(NamedTuple):
    """What the sides of a photo may be."""

    max_pixels: int
    min_side_px: int
    max_aspect: float

    def check(self, width: int, height: int) -> None:
        """Raise PhotoError unless the sides lie within."""
        if min(width, height) < self.min_side_px:
            raise PhotoError("too_small", f"{width}x{height}, short side below {self.min_side_px}")
        if width * height > self.max_pixels:
            raise PhotoError("too_many_pixels", f"{width}x{height}, more than {self.max_pixels} pixels")
        if max(width, height) > self.max_aspect * min(width, height):
            raise PhotoError("too_long", f"{width}x{height}, long side above {self.max_aspect:g} times the short side")


class Picture(NamedTuple):
    """Decoded pixels, and what is still to be done to them."""

    image: Image.Image
    profile: bytes | None
    upright: list[Transpose]


def decode(data: bytes, *, max_pixels: int, min_side_px: int, max_aspect: float = math.inf) -> Image.Image:
    """The photo in `data`: mode RGB, upright, sRGB. `info["format"]` is JPEG, PNG, WEBP, TIFF, AVIF or HEIC.

    Raises PhotoError with a reason of REASONS; its detail is fixed text and numbers, equal in equal runs.
    """
    limits = Limits(max_pixels, min_side_px, max_aspect)
    kind = sniff(data)
    if kind == "TIFF":
        image, profile, upright = _tiff(data, limits)
    elif kind == "HEIF":
        still = isobmff.still(data)
        kind = still.kind
        image, profile, upright = _heif(data, still, limits)
    else:
        image, profile, upright = _pillow(data, kind, limits)
    limits.check(*image.size)
    image = icc.to_srgb(_opaque(image), profile)
    for turn in upright:
        image = image.transpose(turn)
    image.info = {"format": kind}
    return image


def sniff(data: bytes) -> str:
    """JPEG, PNG, WEBP, TIFF or HEIF (AVIF and HEIC) by the first bytes; names and content types are not trusted."""
    if not data:
        raise PhotoError("empty")
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data.startswith(tiff.MAGIC):
        return "TIFF"
    if isobmff.is_isobmff(data):
        return "HEIF"
    raise PhotoError("unsupported")


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


def _pillow(data: bytes, kind: str, limits: Limits) -> Picture:
    """JPEG, PNG and WebP by Pillow. The plugin of the format on its own: no other is tried, no global limit is asked."""
    if kind == "JPEG":
        head = jpeg.frame(data)
        limits.check(head.width, head.height)
        if head.scans > jpeg.MAX_SCANS:
            raise PhotoError("bomb", f"JPEG of more than {jpeg.MAX_SCANS} scans")
    if kind == "WEBP":
        limits.check(*webp_sides(data))
    plugin = {"JPEG": JpegImagePlugin.JpegImageFile, "PNG": PngImagePlugin.PngImageFile,
              "WEBP": WebPImagePlugin.WebPImageFile}[kind]
    try:
        image = plugin(BytesIO(data))
    except DECODER_ERRORS as error:
        raise _refused(error, "header", kind) from error
    limits.check(*image.size)
    try:
        image.load()
    except DECODER_ERRORS as error:
        raise _refused(error, "pixels", kind) from error
    upright = UPRIGHT.get(_orientation(image))
    profile, adobe = image.info.get("icc_profile"), "adobe" in image.info
    if image.mode == "CMYK" and not adobe:  # Pillow inverts all CMYK; only Adobe's is stored inverted
        image = Image.eval(image, lambda level: 255 - level)
    return Picture(image, profile, [upright] if upright is not None else [])


def _tiff(data: bytes, limits: Limits) -> Picture:
    layout = tiff.layout(data)
    limits.check(layout.width, layout.height)
    if layout.block[0] * layout.block[1] > limits.max_pixels:
        raise PhotoError("too_many_pixels", f"TIFF tiles of {layout.block[1]}x{layout.block[0]}")
    try:
        image = tiff.read(data, layout)
    except DECODER_ERRORS as error:
        raise PhotoError("corrupt", "TIFF pixels") from error
    upright = UPRIGHT.get(layout.orientation)
    return Picture(image, layout.profile, [upright] if upright is not None else [])


def _heif(data: bytes, still: isobmff.Still, limits: Limits) -> Picture:
    """AVIF by libavif, HEIC by libheif. libheif cuts and turns the picture itself."""
    limits.check(*still.sides[0])
    most = min(limits.max_pixels, AVIF_MAX_PIXELS) if still.kind == "AVIF" else limits.max_pixels
    for width, height in still.sides:
        if width * height > most:
            raise PhotoError("too_many_pixels", f"{width}x{height}, more than {most} pixels")
    profile = still.profile or icc.of_code_points(*still.code_points or (1, 13))
    try:
        if still.kind == "AVIF":
            image = _avif(data, twelve_bit=still.twelve_bit)
            if still.crop and image.size != still.sides[0]:
                raise ValueError("sides")
            return Picture(image.crop(still.crop) if still.crop else image, profile, still.upright)
        return Picture(_heic(data), profile, [])
    except DECODER_ERRORS as error:
        raise PhotoError("corrupt", f"{still.kind} pixels") from error


def _avif(data: bytes, *, twelve_bit: bool) -> Image.Image:
    """Mode L, LA, RGB or RGBA; deeper samples keep their eight high bits. Not turned."""
    still = data[:8] + b"avif" + data[12:]  # libavif plays the track of a file whose first brand is avis
    levels = imagecodecs.avif_decode(still, 0, numthreads=1)
    if levels.dtype != np.uint8:
        levels = (levels >> (4 if twelve_bit else 2)).clip(0, 255).astype(np.uint8)
    return Image.fromarray(levels[..., 0] if levels.shape[-1] == 1 else levels)


def _heic(data: bytes) -> Image.Image:
    try:
        import pillow_heif  # an extra: its wheel carries an encoder under the GPL, which we do not ship
    except ImportError as error:
        raise PhotoError("no_decoder", "install infd[heic]") from error
    file = pillow_heif.open_heif(data, convert_hdr_to_8bit=True)
    return file[file.primary_index].to_pillow()


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


def _opaque(image: Image.Image) -> Image.Image:
    """Any mode that the decoders make → L, RGB or CMYK, over white."""
    if image.mode.startswith("I"):
        return _grey16(image)
    if "transparency" in image.info or image.mode in ("LA", "PA", "RGBA", "La", "RGBa"):
        return _over_white(image)
    return image if image.mode in ("RGB", "L", "CMYK") else image.convert("L" if image.mode == "1" else "RGB")


def _over_white(image: Image.Image) -> Image.Image:
    """By bands of rows, because the alpha, the colours and the white of a whole photo would be 13 bytes a pixel."""
    white = Image.new("RGB", image.size, (255, 255, 255))
    rows = max(1, BAND_PX // image.width)
    for top in range(0, image.height, rows):
        box = (0, top, image.width, min(image.height, top + rows))
        part = image.crop(box)
        part.info = image.info  # the transparent colour
        rgba = part.convert("RGBA")
        white.paste(rgba.convert("RGB"), box, rgba.getchannel("A"))
    return white


def _grey16(image: Image.Image) -> Image.Image:
    """16-bit grey → L by the high byte, as Pillow does for 16-bit RGB; the transparent value becomes white."""
    values = np.asarray(image)
    grey = (values >> 8).clip(0, 255).astype(np.uint8)
    if "transparency" in image.info:
        grey[values == image.info["transparency"]] = 255
    return Image.fromarray(grey, "L")
