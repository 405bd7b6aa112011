"""The pyramid: what is stored, and that patches are crops of the view resized at once."""

import dataclasses
from io import BytesIO

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from pictures import picture, psnr
from PIL import Image
from refs import patches as reference

from infd.config import IngestConfig
from infd.data import pyramid
from infd.errors import DatasetError

PNG = IngestConfig(codec="png", tile_px=128)
JPEG = IngestConfig()

_built: dict[tuple[int, int, str], tuple[Image.Image, pyramid.Pyramid]] = {}


def built(width: int, height: int, config: IngestConfig) -> tuple[Image.Image, pyramid.Pyramid]:
    key = (width, height, config.codec)
    if key not in _built:
        image = picture(width, height, seed=width)
        _built[key] = (image, pyramid.build(image, config))
    return _built[key]


@st.composite
def cases(draw: st.DrawFn) -> tuple[int, int, float, int, int, int, int]:
    """width, height, offset, r, y, x, size."""
    width, height = draw(st.sampled_from([(600, 601), (257, 1500), (777, 300), (513, 512)]))
    side = min(width, height)
    r = draw(st.one_of(st.just(side), st.integers(16, side)))
    size = draw(st.integers(1, min(r, 96)))
    return width, height, draw(st.floats(0, 1)), r, draw(st.integers(0, r - size)), draw(st.integers(0, r - size)), size


@given(st.integers(16, 9000), st.integers(16, 9000))
def test_law_levels_halve_down_to_256(width, height):
    sides = pyramid.level_sides(width, height)
    assert sides[0] == (width, height)
    for (w0, h0), (w1, h1) in zip(sides, sides[1:], strict=False):
        assert (w1, h1) == ((w0 + 1) // 2, (h0 + 1) // 2) and min(w1, h1) >= 256
    last = sides[-1]
    assert min((last[0] + 1) // 2, (last[1] + 1) // 2) < 256


@pytest.mark.parametrize("codec", ["png", "webp-lossless"])
def test_law_at_native_r_a_patch_is_the_stored_pixels(codec):
    image = picture(391, 300)
    stored = pyramid.build(image, IngestConfig(codec=codec, tile_px=128))
    pixels = np.asarray(image)
    for offset in (0.0, 0.31, 0.5, 1.0):
        view = pyramid.view_at(391, 300, offset)
        whole = pyramid.read_patch(stored, r=300, y=0, x=0, h=300, w=300, view=view)
        assert_array_equal(whole, pixels[view.y:view.y + 300, view.x:view.x + 300])
        part = pyramid.read_patch(stored, r=300, y=120, x=7, h=33, w=150, view=view)
        assert_array_equal(part, whole[120:153, 7:157])


@given(cases())
@example((600, 601, 0.5, 401, 0, 0, 96))
@example((600, 601, 0.5, 200, 104, 104, 96))
@settings(max_examples=60)
def test_law_a_patch_is_the_crop_of_the_whole_resize(case):
    width, height, offset, r, y, x, size = case
    image, stored = built(width, height, PNG)
    view = pyramid.view_at(width, height, offset)
    patch = pyramid.read_patch(stored, r=r, y=y, x=x, h=size, w=size, view=view)
    expected = reference.whole_view(image, *view, r)[y:y + size, x:x + size]
    assert patch.shape == (size, size, 3) and patch.dtype == np.uint8 and patch.flags.writeable
    if pyramid.serving_level(stored.levels, r) == 0:
        assert np.abs(patch.astype(int) - expected).max() <= 1  # rounding between the two passes of the filter
    else:
        assert psnr(patch, expected) >= 42  # halving, then the rest: a small patch may be one edge


def test_ref_a_patch_is_lanczos_in_float64():
    image, stored = built(513, 512, PNG)
    view = pyramid.view_at(513, 512, 1.0)
    patch = pyramid.read_patch(stored, r=400, y=380, x=300, h=20, w=50, view=view)
    step = 512 / 400
    box = (380 * step, view.x + 300 * step, 400 * step, view.x + 350 * step)
    expected = reference.resized(np.asarray(image), box, 20, 50).clip(0, 255)
    assert np.abs(patch - expected).max() <= 1.6  # two roundings to whole levels


@pytest.mark.parametrize(("width", "height"), [(1500, 1100), (1025, 1800)])
def test_law_jpeg_tiles_stay_above_45_db(width, height):
    image, stored = built(width, height, JPEG)
    view = pyramid.center_view(width, height)
    for r in (256, 300, 366, 500, 683, 733):
        expected = reference.whole_view(image, *view, r)
        y, x = (r - 256) // 2, (r - 256) // 3
        patch = pyramid.read_patch(stored, r=r, y=y, x=x, h=256, w=256, view=view)
        assert psnr(patch, expected[y:y + 256, x:x + 256]) >= 45, r


@pytest.mark.parametrize(("width", "height"), [(256, 256), (2000, 256), (257, 300), (64, 90)])
def test_law_every_pixel_of_every_level_is_stored_once(width, height):
    image = picture(width, height)
    stored = pyramid.build(image, IngestConfig(codec="png", tile_px=100, min_side_px=16))
    level = image
    for number, (w, h, first) in enumerate(stored.levels):
        level = image if number == 0 else level.resize((w, h), Image.Resampling.LANCZOS)
        canvas = Image.new("RGB", (w, h))
        index = first
        for y in range(0, h, 100):
            for x in range(0, w, 100):
                canvas.paste(Image.open(BytesIO(stored.tiles[index])), (x, y))
                index += 1
        assert_array_equal(np.asarray(canvas), np.asarray(level))
    assert index == len(stored.tiles)


def test_law_lowres_is_the_centred_view():
    image, stored = built(777, 300, PNG)
    view = pyramid.center_view(777, 300)
    assert view == (0, 238, 300)
    assert_array_equal(np.asarray(pyramid.decode(stored.lowres, "png")), reference.whole_view(image, *view, 256))


def test_law_lowres_is_never_enlarged():
    small = pyramid.build(picture(90, 64), IngestConfig(codec="png", min_side_px=16))
    assert pyramid.decode(small.lowres, "png").size == (64, 64)


def test_law_only_touched_tiles_are_decoded():
    _, stored = built(600, 601, PNG)
    poisoned = dataclasses.replace(stored, tiles=[b""] * len(stored.tiles))
    view = pyramid.center_view(600, 601)
    across = -(-600 // 128)
    tiles = list(poisoned.tiles)
    tiles[across + 1] = stored.tiles[across + 1]
    lone = dataclasses.replace(stored, tiles=tiles)
    pyramid.read_patch(lone, r=600, y=128 - view.y, x=128 - view.x, h=128, w=128, view=view)
    with pytest.raises(DatasetError, match="tile 1 cannot be decoded"):
        pyramid.read_patch(lone, r=600, y=127 - view.y, x=128 - view.x, h=128, w=128, view=view)


def test_error_a_tile_of_another_size_is_named():
    _, stored = built(513, 512, PNG)
    wrong = dataclasses.replace(stored, tiles=[pyramid.encode(picture(5, 5), "png")] * len(stored.tiles), name="shard x")
    with pytest.raises(DatasetError, match=r"shard x: tile 0 has 5x5 pixels; expected 128x128"):
        pyramid.read_patch(wrong, r=512, y=0, x=0, h=9, w=9, view=pyramid.View(0, 0, 512))


@pytest.mark.parametrize("wrong", [{"y": -1}, {"x": 250}, {"h": 0}, {"r": 513, "y": 0}])
def test_error_a_patch_outside_the_view_is_refused(wrong):
    _, stored = built(513, 512, PNG)
    with pytest.raises(ValueError, match="must lie inside|nothing is enlarged"):
        pyramid.read_patch(stored, **({"r": 256, "y": 0, "x": 0, "h": 9, "w": 9} | wrong), view=pyramid.View(0, 0, 512))


def test_error_an_offset_beyond_the_long_side():
    with pytest.raises(ValueError, match=r"offset=1.5: must lie in \[0, 1\]"):
        pyramid.view_at(5, 4, 1.5)
