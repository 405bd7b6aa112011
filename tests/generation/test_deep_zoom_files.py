"""Deep Zoom pyramids in files: every tile of every level against slow halves of the whole picture."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from infd.generation.deep_zoom_files import write_deep_zoom


def half(picture: np.ndarray) -> np.ndarray:
    """uint8 (H, W, 3) -> (ceil(H / 2), ceil(W / 2), 3): means of four, an odd edge counted twice."""
    height, width = picture.shape[:2]
    even = np.pad(picture, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge").astype(int)
    return ((even[0::2, 0::2] + even[1::2, 0::2] + even[0::2, 1::2] + even[1::2, 1::2] + 2) // 4).astype(np.uint8)


def tiles_of(level: np.ndarray) -> dict[str, np.ndarray]:
    """254 pixels a tile and one more towards each neighbour."""
    height, width = level.shape[:2]
    return {f"{column}_{row}": level[max(0, 254 * row - 1):254 * row + 255, max(0, 254 * column - 1):254 * column + 255]
            for row in range(-(-height // 254)) for column in range(-(-width // 254))}


def bands(picture: np.ndarray, generator: np.random.Generator) -> Iterator[np.ndarray]:
    """In pieces of any height, each good until the next one."""
    first, held = 0, np.empty_like(picture)
    while first < len(picture):
        rows = picture[first:first + int(generator.integers(1, 300))]
        held[:len(rows)] = rows
        yield held[:len(rows)]
        held[:] = 0
        first += len(rows)


@pytest.mark.slow
@settings(max_examples=15)
@example(height=255, width=254)
@example(height=509, width=255)
@example(height=762, width=3)
@example(height=1, width=1)
@given(height=st.integers(1, 800), width=st.integers(1, 560))
def test_ref_every_tile_of_every_level(tmp_path_factory, height, width):
    generator = np.random.default_rng(height)
    level = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
    path = tmp_path_factory.mktemp("pyramid") / "a"
    write_deep_zoom(str(path), bands(level, generator), height=height, width=width, tiles="png", metadata={})
    for number in range((max(height, width) - 1).bit_length(), -1, -1):
        wanted, folder = tiles_of(level), Path(f"{path}_files") / str(number)
        assert {file.name for file in folder.iterdir()} == {f"{name}.png" for name in wanted}
        for name, tile in wanted.items():
            with Image.open(folder / f"{name}.png") as image:
                np.testing.assert_array_equal(np.array(image), tile)
        level = half(level)
    assert level.shape == (1, 1, 3)


def test_a_jpeg_tile_is_near_its_pixels(tmp_path):
    smooth = np.broadcast_to(np.linspace(0, 255, 300)[:, None, None], (300, 300, 3)).astype(np.uint8)
    write_deep_zoom(str(tmp_path / "a"), [smooth], height=300, width=300, tiles="jpg", metadata={})
    with Image.open(tmp_path / "a_files" / "9" / "1_1.jpg") as image:
        assert np.abs(np.array(image, float) - smooth[253:, 253:]).max() < 4
