"""Nearest features, and the field: phi plus renderer, which can be asked for any pixel grid.

A field spans [-1, 1]^2, order (row, column). Pixel i of n has its centre at (2 i + 1) / n - 1 and the cell 2 / n.
On a known grid the nearest of F features is floor((2 i + 1) F / (2 n)), in integers: no rounding, so a patch is
exactly the slice of its whole, and a tie always falls to the later feature. Source: INFD sections 4.1, 4.2.

Shapes: B batch, C channels of phi, F (rows and columns) grid of phi, H W whole render, h w a box of it.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Self

import torch
from torch import Tensor

from infd.config import DEFAULT_MODE, Mode
from infd.models.boxes import Box, checked_box, tiles
from infd.models.renderers.clif import CLIF, LocalStatistics, Statistics
from infd.models.statistics import Windows, whole

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


# ---------------------------------------------------------------- the field


class Field:
    """phi (B, C, F, F) and the renderer R: renders any pixel grid of [-1, 1]^2, or a box of one.

    A render of H x W with H != W samples the square field anisotropically: its cell is (2 / H, 2 / W).
    Never builds a graph; training renders through `Autoencoder.forward`. patch_px is P, the side of what R's norms saw
    at once in training; the modes "window" and "reference", the default, need it. `field[k]` is image k of the batch alone.
    """

    def __init__(self, phi: Tensor, renderer: CLIF, *, patch_px: int | None = None) -> None:
        self.phi = phi
        self.renderer = renderer
        self.patch_px = patch_px

    def __len__(self) -> int:
        return len(self.phi)

    def __getitem__(self, index: int) -> Self:
        return type(self)(self.phi[index][None], self.renderer, patch_px=self.patch_px)

    @torch.no_grad()
    def render(
        self, height: int, width: int, *, statistics: Mode | Statistics | Windows = DEFAULT_MODE,
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
        self, height: int, width: int, *, statistics: Mode | Statistics | Windows = DEFAULT_MODE,
        box: Box | tuple[int, int, int, int] | None = None, tile_px: int = 256, tile_pad_px: int = 8,
    ) -> Iterator[tuple[Box, Tensor]]:
        """The render piece by piece: (where, RGB (B, 3, h, w)); memory depends on tile_px, not on H and W.

        statistics, of the renderer's GroupNorms:
        "whole": of the whole render, streamed layer by layer. Law: equals one untiled call, whatever tile_px.
        "window": of windows of P x P pixels, each as in training, blended from pixel to pixel; see `Windows`.
        "reference": of the one render of P x P pixels, for every size.
        "tile": of each tile with tile_pad_px around it, as published; shows seams and changes with tile_px.
        a value of `Field.statistics`: frozen, so that a deep zoom keeps the look of another render.
        a value of `Field.windows` for the same H and W: keeps windows from one call to the next.
        Law: in all but "tile" the result does not depend on tile_px, and a box is the crop of the full render.
        Raises ValueError when the box is empty or leaves the render, or where P is wanted and not known.
        """
        if tile_px < 1 or tile_pad_px < 0:
            raise ValueError(f"tile_px={tile_px}, tile_pad_px={tile_pad_px}: must be at least 1 and 0")
        region, image = checked_box(height, width, box), Box(0, 0, height, width)
        if height <= tile_px and width <= tile_px and self._own(statistics, height, width):
            yield region, region.of(self._call(image, height, width, None), image)
        elif statistics == "tile":
            for part in tiles(image, tile_px):
                wanted = part.common(region)
                if wanted.height and wanted.width:
                    seen = part.grown(tile_pad_px, height=height, width=width)
                    yield wanted, wanted.of(self._call(seen, height, width, None), seen)
        else:
            source = self._source(statistics, height, width, tile_px)
            for part in tiles(region, tile_px):
                seen = part.grown(self.renderer.reach_px, height=height, width=width)
                here = source.over(seen) if isinstance(source, Windows) else source
                yield part, part.of(self._call(seen, height, width, here), seen)

    @torch.no_grad()
    def statistics(
        self, height: int, width: int, *, tile_px: int = 256, progress: Callable[[int], None] | None = None,
    ) -> Statistics:
        """Statistics of all norms of the renderer over the whole H x W render; see `statistics.whole`."""
        checked_box(height, width, None)
        return whole(self.renderer, partial(self._query, height=height, width=width), height, width, tile_px=tile_px,
                     progress=progress)

    def reference(self, *, tile_px: int = 256) -> Statistics:
        """Statistics of the P x P render. Raises ValueError where P is not known."""
        side = self._patch_px("reference")
        return self.statistics(side, side, tile_px=tile_px)

    def windows(self, height: int, width: int, *, tile_px: int = 256) -> Windows:
        """Statistics of the windows of the H x W render, made as boxes ask for them. Raises ValueError: P not known."""
        checked_box(height, width, None)
        return Windows(self.renderer, partial(self._query, height=height, width=width), height, width,
                       patch_px=self._patch_px("window"), tile_px=tile_px)

    def _source(
        self, statistics: Mode | Statistics | Windows, height: int, width: int, tile_px: int,
    ) -> Statistics | Windows:
        match statistics:
            case "whole":
                return self.statistics(height, width, tile_px=tile_px)
            case "window":
                return self.windows(height, width, tile_px=tile_px)
            case "reference":
                return self.reference(tile_px=tile_px)
            case Statistics() | Windows():
                return statistics
        raise ValueError(f"statistics={statistics!r}: expected whole, window, reference, tile, or statistics of a field")

    def _own(self, statistics: Mode | Statistics | Windows, height: int, width: int) -> bool:
        """Whether the statistics are those of the H x W render itself."""
        return statistics in ("whole", "tile") or (statistics == "reference" and height == width == self._patch_px("reference"))

    def _patch_px(self, mode: str) -> int:
        if self.patch_px is None:
            raise ValueError(f"statistics={mode!r}: the side of patches in training is not known to this field; expected "
                             "Field(phi, renderer, patch_px=...); fields of a loaded checkpoint know it")
        return self.patch_px

    def _query(self, box: Box, height: int, width: int) -> Tensor:
        rows = torch.arange(box.y, box.y + box.height, device=self.phi.device)[None]
        columns = torch.arange(box.x, box.x + box.width, device=self.phi.device)[None]
        return query_grid(self.phi, rows, columns, height, width)

    def _call(self, box: Box, height: int, width: int, statistics: Statistics | LocalStatistics | None) -> Tensor:
        return self.renderer(self._query(box, height, width), statistics)
