"""Where the norms of a render take their statistics: laws of all modes, and windows against their plain reading."""

import pytest
import strategies
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

from infd.config import Mode
from infd.models import statistics
from infd.models.boxes import Box, num_tiles, tiles
from infd.models.fields import Field, query_grid
from infd.models.renderers.clif import CLIF

SEAMLESS: tuple[Mode, ...] = ("whole", "window", "reference")
P = 12


def small_field() -> Field:
    torch.manual_seed(5)
    renderer = CLIF(phi_dim=5, dim=8, blocks=2, groups=4).requires_grad_(False)
    for parameter in renderer.parameters():
        nn.init.normal_(parameter, 0, 0.3)
    return Field(torch.randn(2, 5, 7, 6), renderer, patch_px=P)


FIELD = small_field()

# ---------------------------------------------------------------- laws of all modes


@pytest.mark.slow
@pytest.mark.parametrize("mode", SEAMLESS)
@settings(max_examples=15)
@example(case=(40, 37, 7, (31, 25, 40, 37)))
@given(case=strategies.renders())
def test_law_a_render_is_independent_of_the_tile_size(mode: Mode, case):
    height, width, tile_px, _ = case
    untiled = FIELD.render(height, width, statistics=mode, tile_px=64)
    found = FIELD.render(height, width, statistics=mode, tile_px=max(tile_px, 3))
    torch.testing.assert_close(found, untiled, rtol=0, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("mode", SEAMLESS)
@settings(max_examples=15)
@example(case=(40, 37, 7, (31, 25, 40, 37)))
@given(case=strategies.renders())
def test_law_a_box_rendered_alone_is_the_crop_of_the_full_render(mode: Mode, case):
    height, width, tile_px, box = case
    y0, x0, y1, x1 = box
    full = FIELD.render(height, width, statistics=mode, tile_px=64)
    found = FIELD.render(height, width, statistics=mode, tile_px=max(tile_px, 3), box=box)
    torch.testing.assert_close(found, full[..., y0:y1, x0:x1], rtol=0, atol=1e-4)


def test_law_modes_differ():
    renders = [FIELD.render(30, 40, statistics=mode, tile_px=16) for mode in (*SEAMLESS, "tile")]
    for number, one in enumerate(renders):
        for other in renders[number + 1:]:
            assert (one - other).abs().max() > 0.01


def test_law_an_image_of_a_batch_is_rendered_as_alone():
    for mode in SEAMLESS:
        both = FIELD.render(30, 20, statistics=mode, tile_px=16)
        torch.testing.assert_close(FIELD[1].render(30, 20, statistics=mode, tile_px=16), both[1:], rtol=0, atol=1e-4)
    assert len(FIELD) == 2 and len(FIELD[1]) == 1


@given(st.integers(0, 50), st.integers(0, 50), st.integers(1, 40), st.integers(1, 40), st.integers(1, 20))
def test_law_tiles_are_counted(y, x, height, width, tile_px):
    region = Box(y, x, height, width)
    assert num_tiles(region, tile_px) == len(list(tiles(region, tile_px)))


# ---------------------------------------------------------------- merged, whole


@pytest.mark.parametrize("count", [1, 3])
def test_law_merged_statistics_are_those_of_all_pixels(count):
    torch.manual_seed(0)
    pieces = [100 + 1e-2 * torch.randn(2, 8, 5, 3 + k) for k in range(count)]
    merged = statistics.Merged()
    for piece in pieces:
        merged.add(piece, groups=4)
    whole = torch.cat([piece.double().reshape(2, 4, 2, -1) for piece in pieces], dim=3).flatten(2)
    torch.testing.assert_close(merged.mean, whole.mean(2), rtol=1e-7, atol=0)
    torch.testing.assert_close(merged.var, whole.var(2, correction=0), rtol=1e-3, atol=0)


# ---------------------------------------------------------------- windows


@given(st.integers(1, 400), st.integers(1, 64))
def test_law_windows_cover_an_axis_evenly(length, side):
    starts = statistics.window_starts(length, side)
    window = min(side, length)
    assert starts[0] == 0 and starts[-1] + window == length and len(starts) == -(-length // side)
    steps = [after - before for before, after in zip(starts, starts[1:], strict=False)]
    assert all(1 <= step <= side for step in steps) and (not steps or max(steps) - min(steps) <= 1)


@given(st.integers(2, 300), st.integers(1, 40), st.data())
def test_ref_blend_is_linear_between_centres(length, side, data):
    starts = statistics.window_starts(length, side)
    first = data.draw(st.integers(0, length - 1))
    low, weights = statistics.blend(starts, min(side, length), first, length - first)
    assert weights.shape[0] == length - first and low + weights.shape[1] <= len(starts)
    torch.testing.assert_close(weights.sum(1), torch.ones(length - first), rtol=0, atol=1e-6)
    centres = torch.tensor([start + min(side, length) / 2 for start in starts], dtype=torch.float64)
    found = weights.double() @ centres[low:low + weights.shape[1]]     # a straight line is its own interpolation
    wanted = (torch.arange(first, length) + 0.5).clamp(centres[0].item(), centres[-1].item())
    torch.testing.assert_close(found, wanted.double(), rtol=0, atol=1e-4)


def test_law_a_render_of_one_window_is_a_patch_of_training():
    for height, width in ((P, P), (P - 3, P), (5, 7)):
        patch = FIELD.render(height, width, statistics="whole", tile_px=64)
        torch.testing.assert_close(FIELD.render(height, width, statistics="window"), patch, rtol=0, atol=1e-4)


def test_law_the_render_of_p_x_p_is_its_own_reference(monkeypatch):
    """Without a pass for the statistics: the renderer is called once."""
    patch, forward, calls = FIELD.render(P, P, statistics="whole"), FIELD.renderer.forward, []
    monkeypatch.setattr(FIELD.renderer, "forward", lambda *given: calls.append(given) or forward(*given))
    monkeypatch.setattr(FIELD, "statistics", lambda *_, **__: pytest.fail("statistics were made"))
    torch.testing.assert_close(FIELD.render(P, P), patch, rtol=0, atol=0)
    assert len(calls) == 1
    monkeypatch.undo()
    torch.testing.assert_close(FIELD.render(P, P, tile_px=7), patch, rtol=0, atol=1e-4)


def test_law_a_window_has_the_statistics_of_a_patch_rendered_alone():
    """At the pixel in its centre: P is odd here."""
    field, side = Field(FIELD.phi, FIELD.renderer, patch_px=13), 39
    norms = [*(norm for block in field.renderer.blocks for norm in (block.norm1, block.norm2)), field.renderer.norm_out]
    seen: list[torch.Tensor] = []
    hooks = [norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0])) for norm in norms]
    rows = torch.arange(13, 26)[None]
    field.renderer(query_grid(field.phi, rows, rows + 13, side, side))
    for hook in hooks:
        hook.remove()
    found = field.windows(side, side).over(Box(19, 32, 1, 1))
    for norm, x in enumerate(seen):
        mean, var = found.at(norm)
        grouped = x.reshape(2, 4, -1)
        torch.testing.assert_close(mean[..., 0, 0], grouped.mean(2), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(var[..., 0, 0], grouped.var(2, correction=0), rtol=1e-4, atol=1e-5)


def test_ref_statistics_between_four_windows_are_bilinear():
    windows = Field(FIELD.phi, FIELD.renderer, patch_px=13).windows(39, 39)      # centres at pixels 6, 19, 32

    def at(y: int, x: int) -> torch.Tensor:
        return torch.stack([part[..., 0, 0] for part in windows.over(Box(y, x, 1, 1)).at(3)])

    y, x = 4 / 13, 9 / 13
    wanted = (1 - y) * ((1 - x) * at(6, 6) + x * at(6, 19)) + y * ((1 - x) * at(19, 6) + x * at(19, 19))
    torch.testing.assert_close(at(10, 15), wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(at(2, 38), at(6, 32), rtol=1e-5, atol=1e-5)


def test_law_a_box_costs_the_windows_around_it(monkeypatch):
    windows, made = FIELD.windows(1200, 1200), []
    own = FIELD.renderer.own_statistics
    monkeypatch.setattr(FIELD.renderer, "own_statistics", lambda query: made.append(len(query) // 2) or own(query))
    FIELD.render(1200, 1200, statistics=windows, box=(600, 600, 620, 620))
    assert 0 < sum(made) <= 25
    before = sum(made)
    FIELD.render(1200, 1200, statistics=windows, box=(601, 601, 619, 619))
    assert sum(made) == before


def test_law_forgotten_windows_are_made_anew(monkeypatch):
    wanted = FIELD.render(60, 60, statistics="window", tile_px=16)
    for kept in (1, 9, 12):
        monkeypatch.setattr(statistics, "KEPT_WINDOWS", kept)
        windows, made = FIELD.windows(60, 60), []
        query = windows.query
        windows.query = lambda box, query=query, made=made: made.append(box) or query(box)
        found = FIELD.render(60, 60, statistics=windows, tile_px=16)
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)
        assert len(made) > 25 == len(set(made))


# ---------------------------------------------------------------- errors


def test_error_p_is_not_known():
    field = Field(FIELD.phi, FIELD.renderer)
    for mode in ("window", "reference"):
        with pytest.raises(ValueError, match=f"statistics='{mode}': the side of patches in training is not known"):
            field.render(20, 20, statistics=mode)
    with pytest.raises(ValueError, match="statistics='median': expected whole, window, reference, tile"):
        field.render(20, 20, statistics="median")  # type: ignore[arg-type]
