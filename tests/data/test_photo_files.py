"""Files of every format, made by other libraries, against the pixels that a second decoder finds in them.

`make_photo_files.py` made both: tests/data/photos/NAME, and NAME.png as it should come out (upright, sRGB, over white).
"""

from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from PIL import Image

from infd.data import photo

FOLDER = Path(__file__).parent / "photos"
FILES = sorted(path.name.removesuffix(".png") for path in FOLDER.glob("*.*.png"))
TOLERANCE = {
    # JPEG: T.83 leaves decoders one level; Y, Cb and Cr add up to three in RGB. Here the other decoder is ffmpeg's.
    "progressive.jpg": 3, "subsampled.jpg": 3, "grey.jpg": 1,
    # Two versions of Little CMS, which round their tables differently.
    "p3.jpg": 1, "p3.tif": 1, "cmyk_profile.jpg": 1, "cmyk_profile.tif": 1,
    # Both decoders give the same Y, Cb and Cr; their ways to RGB round differently. P3's curve is steep at black.
    "clap.avif": 1, "clap_turned6.avif": 1, "clap.heic": 1,
    "full.avif": 1, "animated.avif": 1, "deep.avif": 1, "turned4.avif": 1, "turned5.avif": 1, "turned6.avif": 1,
    "turned7.avif": 1, "alpha.avif": 2, "p3.avif": 8, "plain.heic": 1, "turned6.heic": 1, "subsampled.heic": 2, "p3.heic": 3,
    # libvips rounds alpha down, ours to the nearest.
    "alpha.tif": 1, "webp_alpha.tif": 1,
}
"""Levels by which a file may differ; others are equal."""
REPEATED_CHROMA = ("limited.avif", "lossy.webp")
"""ffmpeg and libheif repeat a chroma sample where ours interpolates, and ffmpeg rounds luma down: compared on the mean."""


def both(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Ours and the expected pixels, (H, W, 3) int."""
    if name.endswith(".heic"):
        pytest.importorskip("pillow_heif")
    image = photo.decode((FOLDER / name).read_bytes(), max_pixels=10**5, min_side_px=16)
    assert image.mode == "RGB" and image.info == {"format": kind(name)}
    return np.asarray(image).astype(int), np.asarray(Image.open(FOLDER / f"{name}.png").convert("RGB")).astype(int)


def kind(name: str) -> str:
    return {"jpg": "JPEG", "tif": "TIFF"}.get(name.rsplit(".")[1], name.rsplit(".")[1].upper())


@pytest.mark.parametrize("name", [name for name in FILES if name not in REPEATED_CHROMA])
def test_ref_pixels_are_those_of_another_decoder(name):
    ours, expected = both(name)
    assert ours.shape == expected.shape
    assert np.abs(ours - expected).max() <= TOLERANCE.get(name, 0)
    assert np.ptp(expected) > 50  # a picture, not a blank


@pytest.mark.parametrize("name", REPEATED_CHROMA)
def test_ref_subsampled_pixels_are_those_of_another_decoder(name):
    ours, expected = both(name)
    luma = (ours - expected) @ (0.299, 0.587, 0.114)
    assert np.abs(luma).mean() <= 1.5 and np.abs(ours - expected).mean() <= 2.5
    assert np.abs((ours - expected).mean((0, 1))).max() <= 1.5


def test_law_every_format_has_files():
    assert {kind(name) for name in FILES} == {"JPEG", "PNG", "WEBP", "TIFF", "AVIF", "HEIC"}
    assert len(FILES) >= 50


@pytest.mark.parametrize("name", FILES)
def test_law_the_same_bytes_give_the_same_pixels(name):
    assert_array_equal(both(name)[0], both(name)[0])
