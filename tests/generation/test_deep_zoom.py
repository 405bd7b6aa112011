"""Tiles made when they are asked for: they are parts of the level's render, and cost what lies around them."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from infd.generation.deep_zoom import DeepZoom
from infd.generation.reconstruct import to_pixels
from infd.models.fields import Field
from infd.models.renderers.clif import CLIF


def small_field() -> Field:
    torch.manual_seed(3)
    renderer = CLIF(phi_dim=5, dim=8, blocks=2, groups=4).requires_grad_(False)
    nn.init.normal_(renderer.conv_out.weight, 0, 0.15)
    return Field(torch.randn(1, 5, 7, 6), renderer, patch_px=48)


FIELD = small_field()


@given(st.integers(1, 100_000), st.integers(1, 100_000), st.data())
def test_law_tiles_cover_each_level_with_one_pixel_of_overlap(width, height, data):
    zoom = DeepZoom(FIELD, width, height)
    level = data.draw(st.integers(zoom.first_level, zoom.last_level))
    w, h = zoom.size(level)
    assert zoom.size(zoom.last_level) == (width, height) and min(w, h) >= min(48, width, height)
    if level > zoom.first_level:
        assert zoom.size(level - 1) == (-(-w // 2), -(-h // 2))
    last_row, last_column = (h - 1) // 254, (w - 1) // 254
    row, column = data.draw(st.integers(0, last_row)), data.draw(st.integers(0, last_column))
    box = zoom.box(level, column, row)
    assert (box.y, box.x) == (max(254 * row - 1, 0), max(254 * column - 1, 0))
    assert box.y + box.height == min(254 * (row + 1) + 1, h) and box.x + box.width == min(254 * (column + 1) + 1, w)
    for wrong in ((column + last_column + 1, row), (column, last_row + 1), (-1, row), (column, -1)):
        with pytest.raises(LookupError, match="has no tile in column"):
            zoom.box(level, *wrong)


@pytest.mark.slow
@pytest.mark.parametrize("statistics", ["window", "reference"])
@settings(max_examples=5)
@given(data=st.data())
def test_law_a_tile_is_part_of_the_render_of_its_level(statistics, data):
    zoom = DeepZoom(FIELD, 700, 500, statistics=statistics)
    level = data.draw(st.sampled_from(range(zoom.first_level, zoom.last_level + 1)))
    width, height = zoom.size(level)
    column, row = (data.draw(st.integers(0, (side - 1) // 254)) for side in (width, height))
    box = zoom.box(level, column, row)
    wanted = to_pixels(box.of(FIELD.render(height, width, statistics=statistics), box._replace(
        y=0, x=0, height=height, width=width)))
    found = zoom.tile(level, column, row)
    assert found.shape == wanted.shape and np.abs(found.astype(int) - wanted).max() <= 1


def test_law_a_tile_of_a_vast_image_costs_its_neighbourhood(monkeypatch):
    zoom, pixels = DeepZoom(FIELD, 1 << 20, 1 << 20), []
    query = FIELD._query
    monkeypatch.setattr(FIELD, "_query", lambda box, height, width: pixels.append(box.height * box.width) or query(
        box, height, width))
    zoom.tile(20, 2000, 3000)
    assert sum(pixels) < 4 * 256 * 256


def test_error_levels_and_fields_that_are_not_there():
    zoom = DeepZoom(FIELD, 1000, 1000)
    assert (zoom.first_level, zoom.last_level) == (6, 10)
    for level in (5, 11):
        with pytest.raises(LookupError, match=f"level {level}: expected 6 to 10"):
            zoom.tile(level, 0, 0)
    with pytest.raises(ValueError, match="a field of 2 images"):
        DeepZoom(Field(FIELD.phi.expand(2, -1, -1, -1), FIELD.renderer, patch_px=48), 10, 10)
