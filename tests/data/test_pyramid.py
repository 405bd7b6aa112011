"""The pyramid: what is stored, and that patches are crops of the view resized at once."""

import dataclasses
from concurrent.futures import ThreadPoolExecutor
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
from infd.data import jpeg_pieces, pyramid
from infd.errors import DatasetError

PNG = IngestConfig(codec="png", tile_px=128)
JPEG = IngestConfig()

_built: dict[tuple[int, int, str], tuple[Image.Image, pyramid.Pyramid]] = {}


def built(width: int, height: int, config: IngestConfig) -> tuple[Image.Image, pyramid.Pyramid]:
    key = (width, height, f"{config.codec} {config.tile_px}")
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


def assert_one_level(patch: np.ndarray, expected: np.ndarray) -> None:
    """Equal to one grey level, but for one value in a thousand, which may be off by two: PIL keeps the box in float32
    and rounds its weights and the image between its two passes, so another region is another rounding."""
    off = np.abs(patch.astype(int) - expected)
    assert off.max() <= 2 and (off > 1).sum() <= 1 + off.size // 1000


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
@example((777, 300, 0.3671875, 229, 82, 54, 74))
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
        assert_one_level(patch, expected)
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


@pytest.mark.slow
@pytest.mark.parametrize(("width", "height"), [(1500, 1100), (1025, 1800), (256, 256), (320, 2560), (2307, 289)])
@pytest.mark.parametrize("offset", [0.5, 0.83])
def test_law_jpeg_tiles_stay_true(width, height, offset):
    image, stored = built(width, height, JPEG)
    view = pyramid.view_at(width, height, offset)
    for r in {min(r, view.side) for r in (256, 261, 300, 366, 500, 683, 733, 1024, 1100)}:
        expected = reference.whole_view(image, *view, r)
        for y, x in ((0, 0), ((r - 256) // 2, (r - 256) // 3), (r - 256, r - 256)):
            patch = pyramid.read_patch(stored, r=r, y=y, x=x, h=256, w=256, view=view)
            assert psnr(patch, expected[y:y + 256, x:x + 256]) >= 45, (r, y, x)


@pytest.mark.parametrize("sigma", [0, 1, 2, 3, 5, 8, 20, 60, 200])
@pytest.mark.parametrize("kind", ["grey", "colour", "chroma"])
def test_law_no_part_of_a_jpeg_is_far_from_its_pixels(sigma, kind):
    """Noise is the codec's worst case; with the usual tables at quality 95 it falls to 36 dB."""
    noise = np.random.default_rng(round(10 * sigma)).normal(0, sigma, (256, 256, 3))
    if kind == "grey":
        noise = noise[..., :1].repeat(3, 2)
    if kind == "chroma":
        noise = noise - noise.mean(2, keepdims=True)
    for under in (np.full((256, 256, 3), 128), np.asarray(picture(256, 256))):
        pixels = (under + noise).round().clip(0, 255).astype(np.uint8)
        for decoded in (pyramid.decode_jpeg(pyramid.encode(Image.fromarray(pixels), "jpeg")),
                        pyramid.decode_jpeg(jpeg_pieces.encode(Image.fromarray(pixels), pyramid.JPEG_TABLES))):
            assert min(psnr(decoded[y:y + 64, x:x + 64], pixels[y:y + 64, x:x + 64])
                       for y in range(0, 256, 64) for x in range(0, 256, 64)) >= 44.9


@pytest.mark.slow
@given(cases(), st.sampled_from([64, 128, 256]))
@settings(max_examples=60)
def test_law_jpeg_pieces_read_as_whole_tiles_do(case, tile_px):
    width, height, offset, r, y, x, size = case
    config = IngestConfig(tile_px=tile_px)
    _, stored = built(width, height, config)
    plain = plainly_encoded(width, height, config)
    view = pyramid.view_at(width, height, offset)
    patch, expected = (pyramid.read_patch(one, r=r, y=y, x=x, h=size, w=size, view=view) for one in (stored, plain))
    if r == view.side:
        assert_array_equal(patch, expected)
    else:
        assert_one_level(patch, expected)
    assert patch.flags.writeable


def plainly_encoded(width: int, height: int, config: IngestConfig) -> pyramid.Pyramid:
    """As datasets of before pieces have it: the same pixels in JPEGs without restart markers."""
    key = (width, height, f"plain {config.tile_px}")
    if key not in _built:
        image, stored = built(width, height, config)
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(pyramid, "_has_pieces", lambda _: False)
            plain = pyramid.build(image, config)
        assert [len(one.tiles) for one in (stored, plain)] == [len(plain.tiles)] * 2
        assert all(b"\xff\xdd" not in tile[:700] for tile in plain.tiles)
        _built[key] = image, plain
    return _built[key][1]


def test_law_one_call_decodes_a_region(monkeypatch):
    """The pieces are used at all, and whole tiles are not decoded."""
    _, stored = built(1500, 1100, JPEG)
    monkeypatch.setattr(pyramid, "_whole_tiles", None)
    for y, x in ((0, 0), (300, 200), (544, 544)):
        pyramid.read_patch(stored, r=800, y=y, x=x, h=256, w=256, view=pyramid.center_view(1500, 1100))


def test_law_threads_read_the_same():
    _, stored = built(1500, 1100, JPEG)
    view = pyramid.center_view(1500, 1100)

    def read(r: int) -> bytes:
        return pyramid.read_patch(stored, r=r, y=r - 256, x=0, h=256, w=256, view=view).tobytes()

    sides = list(range(256, 1100, 50)) * 4
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(read, sides)) == [read(r) for r in sides]


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


@pytest.mark.parametrize("config", [PNG, JPEG], ids=["png", "jpeg"])
def test_law_lowres_is_read_at_any_side(config):
    _, stored = built(777, 300, config)
    whole = pyramid.read_lowres(stored, 256)
    assert_array_equal(whole, np.asarray(pyramid.decode(stored.lowres, stored.codec)))
    half = pyramid.read_lowres(dataclasses.replace(stored, lowres=memoryview(stored.lowres)), 64)
    assert_array_equal(half, np.asarray(Image.fromarray(whole).resize((64, 64), Image.Resampling.LANCZOS)))
    assert whole.flags.writeable and half.flags.writeable


@pytest.mark.parametrize(("side", "codec"), [(1023, "jpeg"), (1024, "raw"), (1300, "raw")])
def test_law_lowres_of_a_large_photo_is_stored_as_it_is(side, codec):
    image, stored = built(side + 7, side, JPEG)
    assert stored.lowres_codec == codec
    lowres, expected = pyramid.read_lowres(stored, 256), reference.whole_view(image, *pyramid.center_view(*image.size), 256)
    assert lowres.flags.writeable and psnr(lowres, expected) >= 45
    assert (lowres == expected).all() == (codec == "raw")


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


@pytest.mark.parametrize(("spoil", "says"), [
    (lambda tile: tile[:-40], "tile 3 cannot be decoded as jpeg; expected 244x244 pixels"),
    (lambda tile: bytes(len(tile)), "tile 3 cannot be decoded as jpeg"),
    (lambda tile: b"", "tile 3 cannot be decoded as jpeg"),
    (lambda tile: pyramid.encode(picture(30, 20), "jpeg"), "tile 3 has 30x20 pixels; expected 244x244"),
], ids=["cut short", "zeros", "empty", "another picture"])
def test_error_a_damaged_jpeg_tile_is_named(spoil, says):
    stored = pyramid.build(picture(500, 500), JPEG)
    tiles = [*stored.tiles]
    tiles[3] = spoil(tiles[3])
    bad = dataclasses.replace(stored, tiles=tiles, name="shard x row 5 (a.jpg)")
    with pytest.raises(DatasetError, match=rf"shard x row 5 \(a.jpg\): {says}"):
        pyramid.read_patch(bad, r=500, y=200, x=200, h=256, w=244, view=pyramid.View(0, 0, 500))


@pytest.mark.parametrize(("side", "codec", "as_codec"), [(300, "jpeg", "jpeg"), (300, "png", "png"), (1024, "jpeg", "raw")])
def test_error_a_damaged_lowres_is_named(side, codec, as_codec):
    stored = pyramid.build(picture(side, side), IngestConfig(codec=codec))
    cut = dataclasses.replace(stored, lowres=stored.lowres[:-60])
    with pytest.raises(DatasetError, match=f"a photo in memory: its lowres cannot be decoded as {as_codec}"):
        pyramid.read_lowres(cut, 256)


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
