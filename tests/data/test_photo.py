"""Source files of every kind become upright sRGB photos, or are refused with a word of the closed vocabulary."""

import re
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from pictures import encoded, picture
from PIL import Image

from infd.data import icc, photo
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
    decoded(data, min_side_px=40, max_pixels=4000)
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
    head = bytearray(128)
    head[12:24] = b"mntrRGB XYZ "
    head[36:40] = b"acsp"
    return bytes(head) + struct.pack(">I", len(tags)) + table + body


P3 = np.array([[0.51512, 0.29198, 0.15710], [0.24120, 0.69225, 0.06657], [-0.00105, 0.04189, 0.78407]])
"""Display P3's primaries under D50. Source: the profile that Apple publishes."""


def test_ref_a_wide_profile_is_converted():
    levels = np.random.default_rng(0).integers(30, 226, (32, 32, 3)).astype(np.uint8)
    found = decoded(encoded(Image.fromarray(levels), icc_profile=profile(P3, gamma_curve(2.2)))).astype(float)
    linear = (levels / 255) ** 2.2 @ P3.T @ np.linalg.inv(icc.SRGB_TO_XYZ).T
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
    assert_array_equal(decoded(encoded(image, icc_profile=profile(icc.SRGB_TO_XYZ, curve))), levels)
    assert (decoded(encoded(image, icc_profile=profile(P3, curve))) != levels).any()


def test_ref_parametric_curves():
    x = np.arange(256) / 255
    def para(kind: int, *values: float) -> np.ndarray:
        return icc._curve(b"para\0\0\0\0" + struct.pack(f">HH{len(values)}i", kind, 0, *(round(v * 65536) for v in values)))

    np.testing.assert_allclose(para(0, 2.0), x**2, atol=1e-4)
    np.testing.assert_allclose(para(1, 2.0, 1.0, -0.5), np.where(x >= 0.5, (x - 0.5) ** 2, 0), atol=1e-4)
    np.testing.assert_allclose(para(2, 2.0, 1.0, -0.5, 0.1), np.where(x >= 0.5, (x - 0.5) ** 2, 0) + 0.1, atol=1e-4)
    srgb = np.where(x < 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)
    np.testing.assert_allclose(para(3, 2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045), srgb, atol=1e-4)
    np.testing.assert_allclose(para(4, 2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045, 0.25, 0.125),
                               np.where(x < 0.04045, srgb + 0.125, srgb + 0.25), atol=1e-4)


@given(st.binary(max_size=300), st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=6))
def test_law_hostile_profiles_leave_the_numbers_or_convert(junk, flips):
    damaged = bytearray(profile(P3, gamma_curve(2.2)))
    for place, value in flips:
        damaged[place % len(damaged)] = value
    for data in (bytes(damaged), junk, bytes(damaged[:200])):
        assert icc.to_srgb(picture(20, 16), data).size == (20, 16)


def test_law_reasons_are_explained():
    assert all(name.isidentifier() and len(meaning) > 10 for name, meaning in photo.REASONS.items())
