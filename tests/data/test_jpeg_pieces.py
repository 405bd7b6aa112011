"""Pieces: what is decoded of joined pieces is what the tiles hold, as Pillow decodes them one by one."""

from io import BytesIO

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from pictures import encoded, picture
from PIL import Image

from infd.data import jpeg_pieces
from infd.data.jpeg_pieces import NoPieces

SIDE = 128
TABLES = [[5] * 64, [3] * 64]


def decoded(tile: bytes) -> np.ndarray:
    return np.asarray(Image.open(BytesIO(tile)).convert("RGB"))


def grid_of(widths: list[int], heights: list[int]) -> list[list[bytes]]:
    image = picture(sum(widths), sum(heights), seed=5)
    lefts, tops = np.cumsum([0, *widths]).tolist(), np.cumsum([0, *heights]).tolist()
    return [[jpeg_pieces.encode(image.crop((x, y, x + w, y + h)), TABLES) for x, w in zip(lefts, widths, strict=False)]
            for y, h in zip(tops, heights, strict=False)]


@st.composite
def cuts(draw: st.DrawFn) -> tuple[list[int], list[int], range, range]:
    """Widths, heights, rows of blocks and pieces of a region that touches every tile's row."""
    widths = draw(st.sampled_from([[128], [128, 128], [128, 64], [128, 128, 192], [57], [200]]))
    heights = draw(st.sampled_from([[128], [128, 41], [128, 128, 8], [13]]))
    blocks = -(-sum(heights) // 8)
    row = draw(st.integers(0, blocks - 1))
    across = sum(widths) // 64 if widths[0] % 64 == 0 else 1
    piece = draw(st.integers(0, across - 1))
    return (widths, heights, range(row, draw(st.integers(row + 1, blocks))),
            range(piece, draw(st.integers(piece + 1, across))))


@given(cuts())
@example(([128, 128], [128, 41], range(15, 22), range(1, 3)))
@settings(max_examples=60)
def test_law_joined_pieces_are_the_tiles_pixels(cut):
    widths, heights, rows, pieces = cut
    grid = grid_of(widths, heights)
    whole = np.concatenate([np.concatenate([decoded(tile) for tile in line], axis=1) for line in grid])
    right = pieces.stop * 64 if widths[0] % 64 == 0 else widths[0]
    views = [[memoryview(tile) for tile in line] for line in grid]
    found = jpeg_pieces.decode_region(views, heights, widths, rows, pieces)
    assert_array_equal(found[..., :3], whole[rows.start * 8:rows.stop * 8, pieces.start * 64:right])
    assert (found[..., 3] == 255).all()


def test_law_a_tile_in_pieces_has_the_pixels_of_a_plain_jpeg():
    image = picture(200, 100)
    assert_array_equal(decoded(jpeg_pieces.encode(image, TABLES)),
                       decoded(encoded(image, "JPEG", qtables=TABLES, subsampling=0)))


def test_law_equal_images_give_equal_bytes():
    assert jpeg_pieces.encode(picture(256, 256), TABLES) == jpeg_pieces.encode(picture(256, 256), TABLES)


def damaged() -> dict[str, bytes]:
    good = jpeg_pieces.encode(picture(SIDE, SIDE), TABLES)
    marker = good.rindex(b"\xff\xd5")
    return {
        "empty": b"", "zeros": bytes(len(good)), "cut": good[:-100], "head alone": good[:300],
        "no pieces": encoded(picture(SIDE, SIDE), "JPEG", qtables=TABLES, subsampling=0),
        "other tables": jpeg_pieces.encode(picture(SIDE, SIDE), [[9] * 64] * 2),
        "other sides": jpeg_pieces.encode(picture(SIDE, 120), TABLES),
        "a piece gone": good[:marker] + good[marker + 2:],
    }


@pytest.mark.parametrize("name", damaged())
@pytest.mark.parametrize("place", [0, 1])
def test_error_a_damaged_tile_is_refused(name, place):
    tiles = [jpeg_pieces.encode(picture(SIDE, SIDE), TABLES)] * 2
    tiles[place] = damaged()[name]
    with pytest.raises(NoPieces):
        jpeg_pieces.decode_region([tiles], [SIDE], [SIDE, SIDE], range(16), range(4))
