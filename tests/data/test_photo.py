"""Source files of every kind become upright sRGB photos, or are refused with a word of the closed vocabulary."""

import os
import re
import struct
import subprocess
import sys
import tracemalloc
import zlib
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from pictures import encoded, picture
from PIL import Image

from infd.data import icc, isobmff, jpeg, photo, tiff
from infd.errors import PhotoError

LIMITS = {"max_pixels": 10**6, "min_side_px": 16}


def decoded(data: bytes, **limits: int) -> np.ndarray:
    image = photo.decode(data, **(LIMITS | limits))
    assert image.mode == "RGB"
    return np.asarray(image)


def refusal(data: bytes, **limits: int) -> PhotoError:
    with pytest.raises(PhotoError) as caught:
        photo.decode(data, **(LIMITS | limits))
    assert caught.value.reason in photo.REASONS
    return caught.value


def test_law_lossless_files_give_their_pixels():
    image = picture(70, 40)
    for kind, options in (("PNG", {}), ("WEBP", {"lossless": True})):
        assert_array_equal(decoded(encoded(image, kind, **options)), np.asarray(image))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_law_photos_are_upright(kind, orientation):
    """A picture stored turned, with the tag that says so, comes out as it was."""
    upright = np.zeros((40, 64, 3), np.uint8)
    upright[:20, :32] = (255, 0, 0)
    upright[20:, 32:] = (0, 0, 255)
    turned = {1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1],
              5: upright.transpose(1, 0, 2), 6: upright.transpose(1, 0, 2)[::-1],
              7: upright[::-1, ::-1].transpose(1, 0, 2), 8: upright.transpose(1, 0, 2)[:, ::-1]}[orientation]
    exif = Image.Exif()
    exif[photo.ORIENTATION] = orientation
    found = decoded(encoded(Image.fromarray(np.ascontiguousarray(turned)), kind, exif=exif, quality=100))
    assert found.shape == upright.shape
    assert np.abs(found.astype(int) - upright)[4:16, 4:28].max() < 12
    assert np.abs(found.astype(int) - upright)[24:36, 36:60].max() < 12


def test_law_grey_palette_and_bilevel_become_rgb():
    image = picture(40, 30)
    grey = image.convert("L")
    assert_array_equal(decoded(encoded(grey)), np.asarray(grey.convert("RGB")))
    palette = image.quantize(16)
    assert_array_equal(decoded(encoded(palette)), np.asarray(palette.convert("RGB")))
    bilevel = image.convert("1")
    assert_array_equal(decoded(encoded(bilevel)), np.asarray(bilevel.convert("RGB")))


def test_law_sixteen_bit_samples_keep_their_high_byte():
    values = np.arange(40 * 30, dtype=np.uint16).reshape(30, 40) * 54
    assert_array_equal(decoded(encoded(Image.fromarray(values)))[..., 1], (values >> 8).astype(np.uint8))
    samples = np.random.default_rng(0).integers(0, 1 << 16, (30, 40, 3)).astype(">u2")
    assert_array_equal(decoded(png16(samples)), (samples >> 8).astype(np.uint8))


def png16(samples: np.ndarray) -> bytes:
    """A 16-bit RGB PNG, which Pillow cannot write. Source: PNG specification, sections 5 and 11."""
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    height, width, _ = samples.shape
    lines = b"".join(b"\0" + row.tobytes() for row in samples)
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0))
            + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b""))


def test_law_alpha_lies_over_white():
    pixels = np.full((20, 30, 4), (200, 100, 0, 255), np.uint8)
    pixels[:, 10:20, 3] = 0
    pixels[:, 20:, 3] = 128
    for kind, options in (("PNG", {}), ("WEBP", {"lossless": True, "exact": True})):
        found = decoded(encoded(Image.fromarray(pixels), kind, **options)).astype(int)
        assert_array_equal(found[0, 0], (200, 100, 0))
        assert_array_equal(found[0, 15], (255, 255, 255))
        assert np.abs(found[0, 25] - (227, 177, 127)).max() <= 1
    grey = Image.fromarray(pixels).convert("LA")
    assert_array_equal(decoded(encoded(grey))[0, 15], (255, 255, 255))


def test_law_a_transparent_colour_is_white():
    image = Image.new("RGB", (30, 20), (1, 2, 3))
    image.putpixel((4, 5), (9, 9, 9))
    found = decoded(encoded(image, transparency=(1, 2, 3)))
    assert_array_equal(found[0, 0], (255, 255, 255))
    assert_array_equal(found[5, 4], (9, 9, 9))
    sixteen = Image.fromarray(np.full((20, 30), 513, np.uint16))
    assert decoded(encoded(sixteen, transparency=513)).min() == 255


def test_law_cmyk_becomes_rgb():
    image = Image.new("CMYK", (32, 32), (0, 255, 255, 0))
    found = decoded(encoded(image, "JPEG", quality=100))
    assert np.abs(found[16, 16].astype(int) - (255, 0, 0)).max() <= 3


# ---------------------------------------------------------------- limits and damage


def test_error_each_limit_has_its_reason():
    data = encoded(picture(100, 40))
    assert str(refusal(data, min_side_px=41)) == "too_small: 100x40, short side below 41"
    assert str(refusal(data, max_pixels=3999)) == "too_many_pixels: 100x40, more than 3999 pixels"
    assert str(refusal(data, max_aspect=2.4)) == "too_long: 100x40, long side above 2.4 times the short side"
    decoded(data, min_side_px=40, max_pixels=4000, max_aspect=2.5)
    assert refusal(b"").reason == "empty"
    assert refusal(b"GIF89a" + bytes(50)).reason == "unsupported"
    assert refusal(b"<svg></svg>").reason == "unsupported"


@pytest.mark.parametrize("header", [
    b"VP8X" + struct.pack("<I", 10) + b"\0\0\0\0" + b"\xff\x3f\0\xff\x3f\0",
    b"VP8L" + struct.pack("<I", 10) + b"\x2f" + struct.pack("<I", 0x3FFF | 0x3FFF << 14) + bytes(5),
    b"VP8 " + struct.pack("<I", 10) + b"\0\0\0\x9d\x01\x2a\xff\x3f\xff\x3f",
])
def test_error_a_webp_is_measured_before_its_decoder_allocates(header):
    data = b"RIFF" + struct.pack("<I", 4 + len(header)) + b"WEBP" + header
    assert str(refusal(data)).startswith("too_many_pixels: 1638")


@pytest.mark.parametrize(("kind", "options"), [
    ("WEBP", {}), ("WEBP", {"lossless": True}), ("WEBP", {"lossless": True, "exif": Image.Exif()})])
def test_law_webp_sides_are_those_of_the_picture(kind, options):
    assert photo.webp_sides(encoded(picture(131, 67), kind, **options)) == (131, 67)


def test_law_pillows_own_limit_plays_no_part(monkeypatch, recwarn):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    for kind in ("JPEG", "PNG", "WEBP"):
        decoded(encoded(picture(60, 50), kind))
    assert not recwarn.list


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_error_files_cut_short_are_refused(kind):
    data = encoded(picture(200, 150), kind)
    for share in (0.02, 0.3, 0.7, 0.95):
        assert refusal(data[:int(share * len(data))]).reason in ("truncated", "corrupt")
    if kind != "WEBP":
        assert refusal(data[:len(data) // 2]).reason == "truncated"


@given(st.sampled_from(["JPEG", "PNG", "WEBP"]), st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), max_size=8),
       st.floats(0.01, 1))
@settings(max_examples=300)
def test_law_hostile_bytes_give_a_photo_or_a_reason(kind, flips, share):
    data = bytearray(SEEDS[kind])
    for place, value in flips:
        data[int(place * len(data))] = value
    outcomes = {outcome(bytes(data[:max(12, int(share * len(data)))])) for _ in range(2)}
    assert len(outcomes) == 1


def outcome(data: bytes) -> tuple[str, str] | bytes:
    try:
        return photo.decode(data, **LIMITS).tobytes()
    except PhotoError as error:
        assert error.reason in photo.REASONS and not re.search(r"\b0x[0-9a-f]{8}", error.detail)  # no address
        return error.reason, error.detail


def exif_of_six() -> Image.Exif:
    exif = Image.Exif()
    exif[photo.ORIENTATION] = 6
    return exif


SEEDS = {kind: encoded(picture(48, 32), kind, exif=exif_of_six()) for kind in ("JPEG", "PNG", "WEBP")}


def box(name: bytes, *parts: bytes) -> bytes:
    body = b"".join(parts)
    return struct.pack(">I4s", 8 + len(body), name) + body


def grid(side: int, tile: int, *properties: bytes) -> bytes:
    """The boxes of an AVIF whose picture is a grid of two tiles; there are no coded pixels."""
    def item(number: int, kind: bytes) -> bytes:
        return box(b"infe", b"\2\0\0\0", struct.pack(">HH4s", number, 0, kind), b"\0")

    def ispe(width: int, height: int) -> bytes:
        return box(b"ispe", bytes(4), struct.pack(">II", width, height))

    known = [ispe(side, side), ispe(tile, tile), *properties]
    owned = bytes([1, 1 + len(properties), 1, *range(3, 3 + len(properties))])
    ipma = bytes(4) + struct.pack(">I", 3) + b"\0" + owned + b"\0\2\1\2" + b"\0\3\1\2"
    return box(b"ftyp", b"avif", bytes(4), b"avifmif1") + box(
        b"meta", bytes(4), box(b"pitm", bytes(4), b"\0\1"),
        box(b"iinf", bytes(4), b"\0\3", item(1, b"grid"), item(2, b"av01"), item(3, b"av01")),
        box(b"iref", bytes(4), box(b"dimg", struct.pack(">HH2H", 1, 2, 2, 3))),
        box(b"iprp", box(b"ipco", *known), box(b"ipma", ipma)))


def test_law_the_sides_of_a_grid_are_those_of_the_whole_and_of_its_tiles():
    still = isobmff.still(grid(900, 512, box(b"irot", b"\1"), box(b"imir", b"\1")))
    assert still.kind == "AVIF" and still.sides == [(900, 900), (512, 512), (512, 512)]
    assert still.upright == [Image.Transpose.ROTATE_90, Image.Transpose.FLIP_LEFT_RIGHT]
    assert refusal(grid(900, 512)).reason == "corrupt"  # within limits, and then without pixels
    assert refusal(grid(1001, 512)).reason == "too_many_pixels"
    assert refusal(grid(900, 1 << 20)).reason == "too_many_pixels"
    assert refusal(grid(8, 8)).reason == "too_small"
    assert refusal(grid(900, 512)[:200]).reason == "truncated"


def test_law_a_tiff_is_measured_before_anything_is_allocated():
    data = imagecodecs.tiff_encode(np.asarray(picture(60, 50)), compression="none")
    _, fields = tiff._fields(data)
    for tag, size in ((256, 1 << 20), (257, 1 << 20)):
        place = next(at for at in range(struct.unpack_from("<I", data, 4)[0] + 2, len(data), 12)
                     if struct.unpack_from("<H", data, at)[0] == tag)
        huge = data[:place] + struct.pack("<HHII", tag, 4, 1, size) + data[place + 12:]
        assert refusal(huge).reason in ("too_many_pixels", "too_small")
    assert set(fields) >= {256, 257, 273, 279}


def clap(*numbers: int) -> bytes:
    """A clean aperture: width, height, x, y of its centre from the picture's; each with a denominator."""
    return box(b"clap", struct.pack(">IIIIiIiI", *numbers))


def test_law_a_clean_aperture_is_a_box_of_whole_pixels():
    assert isobmff.still(grid(900, 512)).crop is None
    still = isobmff.still(grid(900, 512, clap(600, 1, 801, 1, -100, 1, 1, 2), box(b"irot", b"\1")))
    assert still.crop == (50, 50, 650, 851) and still.upright == [Image.Transpose.ROTATE_90]


def test_error_clean_apertures_that_are_not_read():
    assert refusal(grid(900, 512, clap(600, 1, 800, 1, 1, 3, 0, 1))).detail == (
        "a HEIF picture with a clean aperture that cuts through pixels")
    behind = refusal(grid(900, 512, box(b"irot", b"\1"), clap(600, 1, 800, 1, 0, 1, 0, 1)))
    assert (behind.reason, behind.detail) == ("unsupported", "a HEIF picture with a clean aperture behind a turn")
    for wrong in (clap(600, 0, 800, 1, 0, 1, 0, 1), clap(902, 1, 900, 1, 0, 1, 0, 1), clap(600, 1, 800, 1, 500, 1, 0, 1),
                  clap(0, 1, 800, 1, 0, 1, 0, 1), box(b"clap", bytes(31))):
        assert refusal(grid(900, 512, wrong)).reason == "corrupt"


@pytest.mark.parametrize(("dtype", "options", "detail"), [
    (np.float32, {}, "TIFF floats"), (np.float16, {"compression": "zstd"}, "TIFF floats"), (np.int16, {}, "TIFF format"),
    (np.uint32, {}, "TIFF bits"), (np.uint8, {"compression": "lzma"}, "TIFF compression 34925"),
    (np.uint8, {"compression": "lerc"}, "TIFF compression 34887")])
def test_error_a_tiff_that_is_not_read_says_why(dtype, options, detail):
    error = refusal(imagecodecs.tiff_encode(np.asarray(picture(60, 50)).astype(dtype), **({"compression": "none"} | options)))
    assert (error.reason, error.detail) == ("unsupported", detail)


def test_error_a_zstd_or_webp_tiff_with_more_or_less_than_its_sides():
    pixels = np.asarray(picture(64, 64))
    for kind in ("zstd", "webp"):
        data = imagecodecs.tiff_encode(pixels, compression=kind, rowsperstrip=64)
        assert decoded(data).shape == (64, 64, 3)
        for tag, side in ((257, 32), (256, 48), (257, 80)):
            place = next(at for at in range(struct.unpack_from("<I", data, 4)[0] + 2, len(data), 12)
                         if struct.unpack_from("<H", data, at)[0] == tag)
            other = data[:place] + struct.pack("<HHII", tag, 4, 1, side) + data[place + 12:]
            assert refusal(other).reason in ("corrupt", "truncated"), (kind, tag, side)


@pytest.mark.parametrize("tile", [16, 64])
def test_law_jpeg_blocks_of_noise_are_read_whole(tile):
    """What bounds the bytes of a block is above the worst that an encoder makes: 0 and 255 at random, at quality 100."""
    noise = np.random.default_rng(tile).choice([np.uint8(0), np.uint8(255)], (192, 192))
    data = imagecodecs.tiff_encode(noise, compression="jpeg", level=100, photometric="minisblack", tile=(tile, tile))
    assert len(data) > 1.1 * noise.size
    assert np.abs(decoded(data).astype(int) - imagecodecs.tiff_decode(data)[..., None]).max() <= 1


def test_error_a_heic_without_its_decoder_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    error = refusal(Path(__file__).with_name("photos").joinpath("plain.heic").read_bytes())
    assert (error.reason, error.detail) == ("no_decoder", "install infd[heic]")


def test_error_a_jpeg_of_countless_scans_is_refused_unread():
    data = encoded(picture(64, 48), "JPEG", progressive=True)
    start, end = data.rindex(b"\xff\xda"), data.rindex(b"\xff\xd9")
    assert jpeg.frame(data).scans <= 10
    bomb = data[:start] + data[start:end] * 200 + data[end:]
    assert str(refusal(bomb)) == "bomb: JPEG of more than 100 scans"
    baseline = encoded(picture(64, 48), "JPEG")
    assert jpeg.frame(baseline + baseline[2:] * 200).scans == 1  # what follows the picture is not looked at
    assert jpeg.frame(b"\xff\xd8\x00\x17\xff\xff\xd0" + baseline[2:]) == (64, 48, 1)  # nor is what stands between markers


def test_law_cmyk_is_inverted_only_where_adobe_marks_it():
    marked = encoded(Image.new("CMYK", (32, 32), (0, 200, 100, 0)), "JPEG", quality=100)
    at = marked.index(b"\xff\xee")
    plain = marked[:at] + marked[at + 2 + struct.unpack_from(">H", marked, at + 2)[0]:]
    assert np.abs(decoded(marked)[16, 16].astype(int) - (255, 55, 155)).max() <= 3
    assert np.abs(decoded(plain)[16, 16].astype(int) - (0, 0, 0)).max() <= 3  # full black ink


def test_error_deflate_bombs_in_png_text_and_profile_are_not_unfolded():
    bomb = zlib.compress(bytes(1 << 28), 9)
    data = encoded(picture(60, 50))
    for name in (b"iCCP", b"zTXt"):
        body = name + b"x\0\0" + bomb
        chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
        tracemalloc.start()
        result = outcome(data[:33] + chunk + data[33:])
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert isinstance(result, bytes) or result[0] in photo.REASONS
        assert peak < 16 << 20


# ---------------------------------------------------------------- memory

MEASURE = """
import sys
from infd.data import icc, photo
icc.SRGB()
def peak():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) * 1024
def decode(path):
    with open(path, "rb") as file:
        data = file.read()
    before = peak()
    return photo.decode(data, max_pixels=300_000_000, min_side_px=16), before
decode(sys.argv[2])
image, before = decode(sys.argv[1])
print(image.width, image.height, peak() - before)
"""


def decoding_bytes(path: Path, warm: str) -> tuple[int, int, int]:
    """Sides, and how far decoding raises a fresh process's peak, after it has decoded the small file `warm`."""
    small = Path(__file__).with_name("photos") / warm
    run = subprocess.run([sys.executable, "-c", MEASURE, str(path), str(small)], check=True, capture_output=True, text=True,
                         cwd=Path(__file__).parents[2], env={**os.environ, "OMP_NUM_THREADS": "1"})
    width, height, grown = map(int, run.stdout.split())
    return width, height, grown


def tiff_of(image: Image.Image, **options: object) -> bytes:
    return imagecodecs.tiff_encode(np.asarray(image), **options)


@pytest.mark.slow
@pytest.mark.parametrize(("warm", "make", "bound"), [
    ("p3.jpg", lambda image: encoded(image, "JPEG"), 4.5),
    ("p3.jpg", lambda image: encoded(image, "JPEG", exif=exif_of_six()), 8.5),
    ("progressive.jpg", lambda image: encoded(image, "JPEG", progressive=True, subsampling=0), 10.5),
    ("p3.jpg", lambda image: encoded(image, "JPEG", icc_profile=imagecodecs.cms_profile("adobergb")), 8.5),
    ("ycck.jpg", lambda image: encoded(image.convert("CMYK"), "JPEG"), 8.5),
    ("alpha.png", lambda image: encoded(image.convert("RGBA"), compress_level=1), 10),
    ("lossy.webp", lambda image: encoded(image, "WEBP", method=0), 16.5),
    ("none.tif", lambda image: tiff_of(image, compression="none", rowsperstrip=64), 5),
    ("none.tif", lambda image: tiff_of(image, compression="deflate", rowsperstrip=3000, predictor=2), 14.5),
    ("full.avif", lambda image: imagecodecs.avif_encode(np.asarray(image), level=60, speed=10, numthreads=1), 8.5)])
def test_law_memory_is_a_few_bytes_a_pixel(tmp_path, warm, make, bound):
    """Beside them up to 8 MiB: where the kernel has huge pages for NumPy, each large array ends at a multiple of 2 MiB."""
    (tmp_path / "file").write_bytes(make(picture(4000, 3000)))
    width, height, grown = decoding_bytes(tmp_path / "file", warm)
    assert grown < bound * width * height + (8 << 20)


@pytest.mark.slow
def test_law_a_jpeg_of_216_megapixels_takes_four_bytes_a_pixel(tmp_path):
    """12,000 x 18,000 px: 0.9 GB beside the file."""
    tiles = np.tile(np.asarray(picture(1200, 1200)), (15, 10, 1))
    (tmp_path / "giant.jpg").write_bytes(imagecodecs.jpeg8_encode(tiles, level=80))
    assert jpeg.frame((tmp_path / "giant.jpg").read_bytes())[:2] == (12_000, 18_000)
    width, height, grown = decoding_bytes(tmp_path / "giant.jpg", "p3.jpg")
    assert (width, height) == (12_000, 18_000)
    assert grown < 4.2 * width * height


# ---------------------------------------------------------------- colour


def gamma_curve(gamma: float) -> bytes:
    return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"


def profile(primaries: np.ndarray, curve: bytes) -> bytes:
    """A matrix profile with one curve; `primaries` (3, 3) holds XYZ under D50 in its columns."""
    def xyz(column: np.ndarray) -> bytes:
        return b"XYZ \0\0\0\0" + struct.pack(">3i", *np.round(column * 65536).astype(int))

    tags = [(b"rXYZ", xyz(primaries[:, 0])), (b"gXYZ", xyz(primaries[:, 1])), (b"bXYZ", xyz(primaries[:, 2])),
            (b"rTRC", curve), (b"gTRC", curve), (b"bTRC", curve)]
    table, body, offset = b"", b"", 132 + 12 * len(tags)
    for name, data in tags:
        table += struct.pack(">4sII", name, offset + len(body), len(data))
        body += data
    head = bytearray(struct.pack(">IIB", 132 + len(table) + len(body), 0, 2) + bytes(119))  # size, maker, version 2
    head[12:24] = b"mntrRGB XYZ "
    head[36:40] = b"acsp"
    return bytes(head) + struct.pack(">I", len(tags)) + table + body


SRGB_TO_XYZ = np.array([[0.4360747, 0.3850649, 0.1430804], [0.2225045, 0.7168786, 0.0606169],
                        [0.0139322, 0.0971045, 0.7141733]])
"""Linear sRGB → XYZ under D50. Source: IEC 61966-2-1, adapted by Bradford."""
P3 = np.array([[0.51512, 0.29198, 0.15710], [0.24120, 0.69225, 0.06657], [-0.00105, 0.04189, 0.78407]])
"""Display P3's primaries under D50. Source: the profile that Apple publishes."""


def test_ref_a_wide_profile_is_converted():
    levels = np.random.default_rng(0).integers(30, 226, (32, 32, 3)).astype(np.uint8)
    found = decoded(encoded(Image.fromarray(levels), icc_profile=profile(P3, gamma_curve(2.2)))).astype(float)
    linear = (levels / 255) ** 2.2 @ P3.T @ np.linalg.inv(SRGB_TO_XYZ).T
    srgb = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * np.maximum(linear, 1e-9) ** (1 / 2.4) - 0.055)
    assert np.abs(found - srgb.clip(0, 1) * 255).max() <= 1
    assert np.abs(found - levels).max() > 8  # it moved: P3's greens lie outside sRGB


def test_law_white_and_grey_stay_so_under_any_matrix_profile():
    grey = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 16, 1)[..., None].repeat(3, 2)
    found = decoded(encoded(Image.fromarray(grey), icc_profile=profile(P3, gamma_curve(2.2)))).astype(int)
    assert np.ptp(found, axis=2).max() <= 2
    assert_array_equal(found[-1, 0], (255, 255, 255))


def test_law_an_srgb_profile_changes_no_pixel():
    x = np.arange(1024) / 1023
    srgb = np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)
    curve = b"curv\0\0\0\0" + struct.pack(">I1024H", 1024, *np.round(srgb * 65535).astype(int))
    levels = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    image = Image.fromarray(levels)
    assert_array_equal(decoded(encoded(image, icc_profile=profile(SRGB_TO_XYZ, curve))), levels)
    assert (decoded(encoded(image, icc_profile=profile(P3, curve))) != levels).any()


def test_ref_parametric_curves_are_read():
    """A curve given by its formula and the same curve as a table convert alike."""
    x = np.arange(4096) / 4095
    table = np.where(x < 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)
    values = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
    formula = b"para\0\0\0\0" + struct.pack(">HH5i", 3, 0, *(round(v * 65536) for v in values))
    tabled = b"curv\0\0\0\0" + struct.pack(">I4096H", 4096, *np.round(table * 65535).astype(int))
    image = picture(64, 48)
    found = [np.asarray(icc.to_srgb(image.copy(), profile(P3, curve))).astype(int) for curve in (formula, tabled)]
    assert np.abs(found[0] - found[1]).max() <= 1
    assert np.abs(found[0] - np.asarray(image)).max() > 3


def test_law_a_grey_profile_moves_greys_alone():
    grey = picture(64, 48).convert("L")
    linear = imagecodecs.cms_profile("gray", whitepoint=(0.3457, 0.3585), gamma=1.8)
    found = decoded(encoded(grey, icc_profile=linear)).astype(int)
    expected = np.asarray(grey) / 255
    expected = 1.055 * (expected ** 1.8) ** (1 / 2.4) - 0.055
    assert np.ptp(found, axis=2).max() == 0
    assert np.abs(found[..., 0] - expected.clip(0, 1) * 255).max() <= 1


def test_law_strips_change_no_pixel(monkeypatch):
    wide = profile(P3, gamma_curve(2.2))
    whole = np.asarray(icc.to_srgb(picture(200, 150), wide))
    monkeypatch.setattr(icc, "STRIP_PX", 1000)
    assert_array_equal(np.asarray(icc.to_srgb(picture(200, 150), wide)), whole)


def test_law_a_profile_of_another_space_leaves_the_numbers():
    image = picture(40, 30)
    grey = imagecodecs.cms_profile("gray", whitepoint=(0.3457, 0.3585), gamma=1.0)
    assert_array_equal(decoded(encoded(image, icc_profile=grey)), np.asarray(image))
    lab = imagecodecs.cms_profile("lab4")
    assert_array_equal(decoded(encoded(image, icc_profile=lab)), np.asarray(image))


def test_law_code_points_convert_as_their_profile_does():
    """AVIF and HEIC may name Display P3 by two numbers instead of a profile."""
    assert icc.of_code_points(1, 13) is None and icc.of_code_points(12, 16) is None
    named = icc.of_code_points(12, 13)
    x = np.arange(4096) / 4095
    srgb = np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)
    curve = b"curv\0\0\0\0" + struct.pack(">I4096H", 4096, *np.round(srgb * 65535).astype(int))
    found = [np.asarray(icc.to_srgb(picture(64, 48), each)).astype(int) for each in (named, profile(P3, curve))]
    assert np.abs(found[0] - found[1]).max() <= 1


@given(st.binary(max_size=300), st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=6))
def test_law_hostile_profiles_leave_the_numbers_or_convert(junk, flips):
    damaged = bytearray(profile(P3, gamma_curve(2.2)))
    for place, value in flips:
        damaged[place % len(damaged)] = value
    for data in (bytes(damaged), junk, bytes(damaged[:200])):
        assert icc.to_srgb(picture(20, 16), data).size == (20, 16)


def test_law_reasons_are_explained():
    assert all(name.isidentifier() and len(meaning) > 10 for name, meaning in photo.REASONS.items())
