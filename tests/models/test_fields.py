"""Nearest features, and renders of a field that do not depend on how they are cut."""

import numpy as np
import pytest
import strategies
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from refs import geometry, golden, points
from torch import nn

from infd.models import fields
from infd.models.boxes import Box
from infd.models.fields import Field
from infd.models.renderers.clif import CLIF


def small_field(*, batch: int = 1, rows: int = 7, columns: int = 6) -> Field:
    torch.manual_seed(2)
    renderer = CLIF(phi_dim=5, dim=8, blocks=2, groups=4).requires_grad_(False)
    for parameter in renderer.parameters():
        nn.init.normal_(parameter, 0, 0.3)
    return Field(torch.randn(batch, 5, rows, columns), renderer, patch_px=12)


FIELD = small_field(batch=2)

# ---------------------------------------------------------------- queries


@given(strategies.patches(), st.sampled_from([1, 5, 8, 32, 64]))
def test_ref_nearest_feature_and_place_are_exact(patch, features):
    r, y, _, p = patch
    index = torch.arange(y, y + p)
    nearest, relative = fields.relative_axis(index, r, features)
    for i, k, place in zip(index.tolist(), nearest.tolist(), relative.tolist(), strict=True):
        assert k == geometry.nearest_feature(i, r, features)
        exact = (geometry.centre(i, r) - geometry.centre(k, features)) * features
        assert -1 <= exact <= 1 and place == np.float32(float(exact))


def test_ref_query_of_patches_with_a_side_of_their_own():
    phi = torch.randn(3, 2, 6, 5)
    r, y, x = torch.tensor([9, 6, 23]), torch.tensor([2, 0, 16]), torch.tensor([0, 1, 9])
    found = fields.query_patch(phi, r, y, x, 5)
    for b in range(3):
        rows, columns = ([*range(int(start[b]), int(start[b]) + 5)] for start in (y, x))
        wanted = geometry.query(phi[b].numpy(), rows, columns, int(r[b]), int(r[b]))
        np.testing.assert_allclose(found[b].numpy(), wanted, rtol=1e-6, atol=1e-7)


def test_ref_query_of_a_grid_that_is_not_square():
    phi = torch.randn(1, 2, 6, 5)
    rows, columns = torch.arange(3, 9)[None], torch.arange(2, 13)[None]
    found = fields.query_grid(phi, rows, columns, 11, 17)
    wanted = geometry.query(phi[0].numpy(), rows[0].tolist(), columns[0].tolist(), 11, 17)
    np.testing.assert_allclose(found[0].numpy(), wanted, rtol=1e-6, atol=1e-7)


@given(strategies.patches(r_max=300))
def test_ref_grid_and_published_points_agree_off_ties(patch):
    r, y, x, p = patch
    phi = torch.randn(1, 2, 8, 8)
    index = [torch.arange(start, start + p) for start in (y, x)]
    plain = [(2 * i + 1) * 8 % (2 * r) != 0 for i in index]
    coord, cell = points.patch_coord(r, y, x, p)[None], torch.full((1, p, p, 2), 2 / r)
    wanted = torch.cat(points.query(phi, coord, cell), dim=-1)[0]
    grid = fields.query_grid(phi, index[0][None], index[1][None], r, r)[0].permute(1, 2, 0)
    chosen = plain[0][:, None] & plain[1][None, :]
    torch.testing.assert_close(grid[chosen], wanted[chosen], rtol=1e-5, atol=1e-5)


def test_golden_the_points_that_grids_are_compared_with_are_the_published_ones():
    data = golden.tensors("data")
    for crop in range(3):
        _, r, y, x = data[f"crop{crop}.case"].tolist()
        torch.testing.assert_close(points.patch_coord(r, y, x, 32), data[f"crop{crop}.gt_coord"], rtol=0, atol=1e-6)
        wanted = data[f"crop{crop}.gt_cell"]
        torch.testing.assert_close(torch.full_like(wanted, 2 / r), wanted, rtol=0, atol=1e-6)
    found = points.query(data["query.feat"], data["query.coord"], data["query.cell"])
    for name, value in zip(("q_feat", "rel_coord", "rel_cell"), found, strict=True):
        torch.testing.assert_close(value, data[f"query.{name}"], rtol=0, atol=1e-6)


def test_golden_nearest_feature_of_every_row_off_ties():
    data, seen = golden.tensors("data"), 0
    for name, wanted in data.items():
        if not (name.startswith("nearest.") and name.endswith(".index")):
            continue
        features, r = (int(part[1:]) for part in name.split(".")[1].split("_"))
        index = torch.arange(r)
        plain = (2 * index + 1) * features % (2 * r) != 0
        nearest, relative = fields.relative_axis(index, r, features)
        assert torch.equal(nearest[plain], wanted[plain].long()), name
        place = data.get(name.replace("index", "rel"))
        if place is not None:  # theirs is a difference of float32 coordinates, times F: one ulp of 1 times F
            torch.testing.assert_close(relative[plain], place[plain], rtol=0, atol=1.2e-7 * features)
        seen += 1
    assert seen == 11


# ---------------------------------------------------------------- renders


@pytest.mark.slow
@settings(max_examples=25)
@given(strategies.renders())
def test_law_whole_is_the_same_in_one_call_and_in_tiles(case):
    height, width, tile_px, _ = case
    untiled = FIELD.render(height, width, statistics="whole", tile_px=64)
    tiled = FIELD.render(height, width, statistics="whole", tile_px=tile_px)
    torch.testing.assert_close(tiled, untiled, rtol=0, atol=1e-4)


@pytest.mark.slow
@settings(max_examples=10)
@given(strategies.renders())
def test_law_a_box_of_published_tiles_is_the_crop_of_the_full_render(case):
    height, width, tile_px, box = case
    y0, x0, y1, x1 = box
    full = FIELD.render(height, width, statistics="tile", tile_px=tile_px)
    found = FIELD.render(height, width, statistics="tile", tile_px=tile_px, box=box)
    torch.testing.assert_close(found, full[..., y0:y1, x0:x1], rtol=0, atol=1e-6)


def test_law_published_tiles_depend_on_their_size_and_whole_ones_do_not():
    def differ(statistics):
        one, two = (FIELD.render(40, 40, statistics=statistics, tile_px=px) for px in (13, 20))
        return (one - two).abs().max().item()

    assert differ("tile") > 0.01 and differ("whole") < 1e-4


def test_law_frozen_statistics_are_those_of_their_render():
    frozen = FIELD.statistics(24, 31, tile_px=10)
    assert frozen.mean.shape == frozen.var.shape == (5, 2, 4) and frozen.mean.dtype == torch.float32
    whole = FIELD.render(24, 31, statistics="whole")
    torch.testing.assert_close(FIELD.render(24, 31, statistics=frozen), whole, rtol=0, atol=1e-4)
    torch.testing.assert_close(FIELD.render(24, 31, statistics=frozen, tile_px=9), whole, rtol=0, atol=1e-4)
    other = FIELD.render(31, 24, statistics=frozen, tile_px=64)
    torch.testing.assert_close(FIELD.render(31, 24, statistics=frozen, tile_px=7), other, rtol=0, atol=1e-4)
    assert (other - FIELD.render(31, 24, statistics="whole")).abs().max() > 1e-3


@pytest.mark.slow
def test_law_a_box_is_rendered_from_its_neighbourhood_alone(monkeypatch):
    frozen, pixels = FIELD.statistics(400, 400, tile_px=128), []
    forward = FIELD.renderer.forward
    monkeypatch.setattr(FIELD.renderer, "forward", lambda query, s=None: pixels.append(query[0, 0].numel()) or
                        forward(query, s))
    FIELD.render(400, 400, statistics=frozen, box=(100, 200, 130, 220), tile_px=128)
    assert sum(pixels) <= 2 * (30 + 12) * (20 + 12)


def test_law_pieces_cover_a_render_once_and_stay_small():
    covered = torch.zeros(50, 37, dtype=torch.int64)
    for box, rgb in FIELD.render_tiles(50, 37, tile_px=16):
        assert rgb.shape == (2, 3, box.height, box.width) and max(box.height, box.width) <= 16
        box.of(covered, Box(0, 0, 50, 37)).add_(1)
    assert covered.eq(1).all()


def test_error_a_box_that_leaves_the_render():
    with pytest.raises(ValueError, match="box y0=0, x0=30, y1=5, x1=41: must lie inside the render of 40 x 40"):
        FIELD.render(40, 40, box=(0, 30, 5, 41))
    with pytest.raises(ValueError, match="at least 1 pixel"):
        FIELD.render(0, 40)
    with pytest.raises(ValueError, match="tile_px=0"):
        FIELD.render(40, 40, tile_px=0)


@pytest.mark.slow
def test_golden_renders_whole_and_in_published_tiles():
    stage_one, network = golden.tensors("stage_one"), golden.networks().autoencoder.eval()
    with torch.no_grad():
        field = network.field(stage_one["encoder.z"][:1])
    found = {
        "whole_40x56": field.render(40, 56, statistics="whole"),
        "untiled_60": field.render(60, 60, statistics="whole"),
        "tiled_60_p24_pad8": field.render(60, 60, statistics="tile", tile_px=24),
        "tiled_60_p24_pad0": field.render(60, 60, statistics="tile", tile_px=24, tile_pad_px=0),
    }
    for name, rgb in found.items():
        assert golden.relative_error(rgb, stage_one[f"render.{name}"]) < 1e-5, name
    streamed = field.render(60, 60, statistics="whole", tile_px=24)
    assert golden.relative_error(streamed, stage_one["render.untiled_60"]) < 1e-5
