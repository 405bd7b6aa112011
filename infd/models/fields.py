"""Nearest features, and the field: phi plus renderer, which can be asked for any pixel grid.

A field spans [-1, 1]^2, order (row, column). Pixel i of n has its centre at (2 i + 1) / n - 1 and the cell 2 / n.
On a known grid the nearest of F features is floor((2 i + 1) F / (2 n)), in integers: no rounding, so a patch is
exactly the slice of its whole, and a tie always falls to the later feature. Source: INFD sections 4.1, 4.2.

Shapes: B batch, C channels of phi, F (rows and columns) grid of phi, H W whole render, h w a box of it.
"""

from collections.abc import Iterator
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from infd.models.renderers.clif import CLIF, Statistics

# ---------------------------------------------------------------- queries


def nearest_index(index: Tensor, side: Tensor | int, features: int) -> Tensor:
    """Of `features` on an axis, the nearest to pixel `index` of `side`: floor((2 i + 1) F / (2 side)), int64."""
    return (2 * index + 1) * features // (2 * side)


def relative_axis(index: Tensor, side: Tensor | int, features: int) -> tuple[Tensor, Tensor]:
    """Nearest feature (int64), and place in its cell: -1 … 1 from edge to edge (float32, one rounding)."""
    nearest = nearest_index(index, side, features)
    return nearest, ((2 * index + 1) * features - (2 * nearest + 1) * side) / side


def query_grid(phi: Tensor, rows: Tensor, columns: Tensor, height: Tensor | int, width: Tensor | int) -> Tensor:
    """What the renderer sees at given rows and columns of an H x W grid.

    phi (B, C, F, F); rows (B or 1, h) and columns (B or 1, w) int64; height and width int, or (B, 1) for a grid of its
    own for each sample. Returns (B, C + 4, h, w) in phi's dtype: nearest features, rel_coord, rel_cell.
    """
    batch, _, feature_rows, feature_columns = phi.shape
    near_rows, rel_rows = relative_axis(rows, height, feature_rows)
    near_columns, rel_columns = relative_axis(columns, width, feature_columns)
    shape = (batch, rows.shape[1], columns.shape[1])
    cells = [
        torch.as_tensor(2 * features / side, device=phi.device, dtype=phi.dtype).reshape(-1, 1, 1).expand(shape)
        for features, side in ((feature_rows, height), (feature_columns, width))
    ]
    places = torch.stack([
        rel_rows[:, :, None].to(phi.dtype).expand(shape), rel_columns[:, None, :].to(phi.dtype).expand(shape), *cells,
    ], dim=1)  # (B, 4, h, w)
    return torch.cat([nearest_features(phi, near_rows, near_columns), places], dim=1)


def nearest_features(phi: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """phi (B, C, F, F) at rows (B or 1, h) x columns (B or 1, w) -> (B, C, h, w)."""
    batch, channels, _, feature_columns = phi.shape
    rows = rows[:, None, :, None].expand(batch, channels, -1, feature_columns)
    taken = phi.gather(2, rows)  # (B, C, h, F)
    return taken.gather(3, columns[:, None, None, :].expand(batch, channels, taken.shape[2], -1))


def query_patch(phi: Tensor, r: Tensor, y: Tensor, x: Tensor, patch_px: int) -> Tensor:
    """The query of a P x P patch for each sample, at (y, x) of a view of side r; (B,) int64 -> (B, C + 4, P, P)."""
    steps = torch.arange(patch_px, device=phi.device)
    side = r[:, None]
    return query_grid(phi, y[:, None] + steps, x[:, None] + steps, side, side)


# ---------------------------------------------------------------- boxes


class Box(NamedTuple):
    """A rectangle of pixels of a render: first row, first column, height, width."""

    y: int
    x: int
    height: int
    width: int

    def grown(self, by: int, *, height: int, width: int) -> "Box":
        """Larger by `by` pixels on each side, but never past an image of height x width."""
        top, left = max(self.y - by, 0), max(self.x - by, 0)
        bottom, right = min(self.y + self.height + by, height), min(self.x + self.width + by, width)
        return Box(top, left, bottom - top, right - left)

    def common(self, other: "Box") -> "Box":
        """The part that lies in both; its sides are 0 where they do not meet."""
        top, left = max(self.y, other.y), max(self.x, other.x)
        bottom = min(self.y + self.height, other.y + other.height)
        right = min(self.x + self.width, other.x + other.width)
        return Box(top, left, max(bottom - top, 0), max(right - left, 0))

    def of(self, image: Tensor, place: "Box") -> Tensor:
        """The pixels of this box out of `image` (..., h, w), which shows `place`."""
        top, left = self.y - place.y, self.x - place.x
        return image[..., top:top + self.height, left:left + self.width]


def tiles(region: Box, tile_px: int) -> Iterator[Box]:
    """Cut a region into tiles of at most tile_px a side, row by row; the grid is anchored at the image's corner."""
    for y in range(region.y // tile_px * tile_px, region.y + region.height, tile_px):
        for x in range(region.x // tile_px * tile_px, region.x + region.width, tile_px):
            part = Box(y, x, tile_px, tile_px).common(region)
            if part.height and part.width:
                yield part


# ---------------------------------------------------------------- the field


class Field:
    """phi (B, C, F, F) and the renderer R: renders any pixel grid of [-1, 1]^2, or a box of one.

    A render of H x W with H != W samples the square field anisotropically: its cell is (2 / H, 2 / W).
    Never builds a graph; training renders through `Autoencoder.forward`.
    """

    def __init__(self, phi: Tensor, renderer: CLIF) -> None:
        self.phi = phi
        self.renderer = renderer

    @torch.no_grad()
    def render(
        self, height: int, width: int, *, statistics: Literal["whole", "tile"] | Statistics = "whole",
        box: Box | tuple[int, int, int, int] | None = None, tile_px: int = 256, tile_pad_px: int = 8,
    ) -> Tensor:
        """RGB (B, 3, h, w) of `box` (y0, x0, y1, x1), or of the whole H x W render; see `render_tiles`."""
        region = checked_box(height, width, box)
        out = None
        for part, rgb in self.render_tiles(
                height, width, statistics=statistics, box=region, tile_px=tile_px, tile_pad_px=tile_pad_px):
            if (part.height, part.width) == (region.height, region.width):
                return rgb
            out = rgb.new_empty((rgb.shape[0], 3, region.height, region.width)) if out is None else out
            part.of(out, region).copy_(rgb)
        if out is None:
            raise AssertionError("a box without tiles")
        return out

    @torch.no_grad()
    def render_tiles(
        self, height: int, width: int, *, statistics: Literal["whole", "tile"] | Statistics = "whole",
        box: Box | tuple[int, int, int, int] | None = None, tile_px: int = 256, tile_pad_px: int = 8,
    ) -> Iterator[tuple[Box, Tensor]]:
        """The render piece by piece: (where, RGB (B, 3, h, w)); memory depends on tile_px, not on H and W.

        statistics, of the renderer's GroupNorms:
        "whole": of the whole render, streamed layer by layer. Law: equals one untiled call, whatever tile_px.
        "tile": of each tile with tile_pad_px around it, as published; shows seams and changes with tile_px.
        a value of `Field.statistics`: frozen, so that a deep zoom keeps the look of another render.
        Raises ValueError when the box is empty or leaves the render.
        """
        if tile_px < 1 or tile_pad_px < 0:
            raise ValueError(f"tile_px={tile_px}, tile_pad_px={tile_pad_px}: must be at least 1 and 0")
        region, image = checked_box(height, width, box), Box(0, 0, height, width)
        if height <= tile_px and width <= tile_px and isinstance(statistics, str):
            yield region, region.of(self._call(image, height, width, None), image)
        elif statistics == "tile":
            for part in tiles(image, tile_px):
                wanted = part.common(region)
                if wanted.height and wanted.width:
                    seen = part.grown(tile_pad_px, height=height, width=width)
                    yield wanted, wanted.of(self._call(seen, height, width, None), seen)
        else:
            if isinstance(statistics, str):
                statistics = self.statistics(height, width, tile_px=tile_px)
            for part in tiles(region, tile_px):
                seen = part.grown(self.renderer.reach_px, height=height, width=width)
                yield part, part.of(self._call(seen, height, width, statistics), seen)

    @torch.no_grad()
    def statistics(self, height: int, width: int, *, tile_px: int = 256) -> Statistics:
        """Statistics of all norms of the renderer over the whole H x W render, streamed over tiles.

        One pass over the pixels for each norm, each one convolution deeper than the last; merged in float64.
        """
        checked_box(height, width, None)
        found: list[tuple[Tensor, Tensor]] = []
        for norm in range(self.renderer.num_norms):
            known = Statistics(*(torch.stack(values) for values in zip(*found, strict=True))) if found else None
            merged = Merged()
            for part in tiles(Box(0, 0, height, width), tile_px):
                seen = part.grown(norm + 1, height=height, width=width)
                hidden = self.renderer.hidden(self._query(seen, height, width), norm=norm, statistics=known)
                merged.add(part.of(hidden, seen), groups=self.renderer.num_groups)
            found.append((merged.mean.float(), merged.var.float()))
        return Statistics(*(torch.stack(values) for values in zip(*found, strict=True)))

    def _query(self, box: Box, height: int, width: int) -> Tensor:
        rows = torch.arange(box.y, box.y + box.height, device=self.phi.device)[None]
        columns = torch.arange(box.x, box.x + box.width, device=self.phi.device)[None]
        return query_grid(self.phi, rows, columns, height, width)

    def _call(self, box: Box, height: int, width: int, statistics: Statistics | None) -> Tensor:
        return self.renderer(self._query(box, height, width), statistics)


class Merged:
    """Mean and variance (B, G), float64, of all pixels added so far. Source: Chan et al. 1979."""

    def __init__(self) -> None:
        self.count = 0
        self.mean = torch.zeros(())
        self.var = torch.zeros(())

    def add(self, x: Tensor, *, groups: int) -> None:
        """x (B, D, h, w): another piece of the same map."""
        grouped = x.float().unflatten(1, (groups, -1)).flatten(2)  # (B, G, D/G h w)
        var, mean = (value.double() for value in torch.var_mean(grouped, dim=2, correction=0))
        share = grouped.shape[2] / (self.count + grouped.shape[2])
        step = mean - self.mean
        self.var = self.var + (var - self.var) * share + step.square() * (share * (1 - share))
        self.mean = self.mean + step * share
        self.count += grouped.shape[2]


def checked_box(height: int, width: int, box: Box | tuple[int, int, int, int] | None) -> Box:
    """The box, or the whole render for None. Raises ValueError when it is empty or leaves the render."""
    if height < 1 or width < 1:
        raise ValueError(f"height={height}, width={width}: a render has at least 1 pixel a side")
    if isinstance(box, Box):
        box = (box.y, box.x, box.y + box.height, box.x + box.width)
    y0, x0, y1, x1 = box or (0, 0, height, width)
    if not (0 <= y0 < y1 <= height and 0 <= x0 < x1 <= width):
        raise ValueError(f"box y0={y0}, x0={x0}, y1={y1}, x1={x1}: must lie inside the render of {height} x {width}")
    return Box(y0, x0, y1 - y0, x1 - x0)
