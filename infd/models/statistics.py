"""Where the renderer's norms take mean and variance from, when a render is cut into tiles.

In training the norms see a patch of P x P pixels at once. A render made at once sees all of its pixels, and the
published tiles see each itself, so that neighbours differ and a seam shows. Here are two ways without seams:
`whole`, the statistics of the untiled render, and `Windows`, those of windows as large as a training patch, which
change from pixel to pixel without a step.

Shapes: B batch, D hidden channels, G groups, N norms, H W whole render, h w a box of it, i j a grid of windows.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from itertools import product

import torch
from torch import Tensor

from infd.models.boxes import Box, tiles
from infd.models.renderers.clif import CLIF, LocalStatistics, Statistics

KEPT_WINDOWS = 1 << 12
"""So many windows are remembered, 5 MB at 5 norms of 32 groups: with P = 256, two rows of them over 500,000 pixels."""

Query = Callable[[Box], Tensor]
"""A box of the render -> what the renderer sees there, (B, C + 4, h, w)."""


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


def whole(
    renderer: CLIF, query: Query, height: int, width: int, *, tile_px: int, progress: Callable[[int], None] | None = None,
) -> Statistics:
    """Of all norms over the whole H x W render, streamed over tiles: memory depends on tile_px alone.

    One pass over the pixels for each norm, each one convolution deeper than the last; merged in float64. `progress` is
    called after each tile with the number of convolutions it took. Law: they are those of one untiled call.
    """
    found: list[tuple[Tensor, Tensor]] = []
    for norm in range(renderer.num_norms):
        known = Statistics(*(torch.stack(values) for values in zip(*found, strict=True))) if found else None
        merged = Merged()
        for part in tiles(Box(0, 0, height, width), tile_px):
            seen = part.grown(norm + 1, height=height, width=width)
            hidden = renderer.hidden(query(seen), norm=norm, statistics=known)
            merged.add(part.of(hidden, seen), groups=renderer.num_groups)
            if progress:
                progress(norm + 1)
        found.append((merged.mean.float(), merged.var.float()))
    return Statistics(*(torch.stack(values) for values in zip(*found, strict=True)))


# ---------------------------------------------------------------- windows


def window_starts(length: int, side: int) -> list[int]:
    """First pixels of the fewest windows of `side` that cover `length` pixels: evenly spread, the first and the last flush
    with the ends, so that every window is full. [0] where one window is enough; it is then as long as the axis."""
    more = -(-length // side) - 1
    return [(2 * index * (length - side) + more) // (2 * more) for index in range(more + 1)] if more else [0]


def blend(starts: Sequence[int], side: int, first: int, length: int) -> tuple[int, Tensor]:
    """How windows count at `length` pixels from pixel `first`: (first window that counts, weights (length, i) float32).

    Linear between the centres of two windows, constant outside the first and the last; each row sums to 1.
    """
    if len(starts) == 1:
        return 0, torch.ones(length, 1)
    centres = torch.tensor(starts, dtype=torch.float64) + side / 2
    pixels = torch.arange(first, first + length, dtype=torch.float64) + 0.5
    after = torch.searchsorted(centres, pixels).clamp(1, len(starts) - 1)
    before = after - 1
    share = ((pixels - centres[before]) / (centres[after] - centres[before])).clamp(0, 1)
    low = int(before[0])
    weights = torch.zeros(length, int(after[-1]) - low + 1, dtype=torch.float64)
    weights.scatter_(1, (before - low)[:, None], (1 - share)[:, None])
    weights.scatter_(1, (after - low)[:, None], share[:, None])
    return low, weights.float()


class Windows:
    """Statistics of windows of P x P pixels anchored to an H x W render, interpolated between their centres.

    Each window is rendered alone, as a patch in training is: its own statistics, zeros around it. A window lies wholly
    inside the render; where a side of the render is shorter than P, the window is as short. Windows are made when a box
    near them is asked for, so a box costs what lies around it. Mean and variance at a pixel are those of the four nearest
    windows, bilinear between their centres; past the outermost centres they stay as they are there.
    """

    def __init__(self, renderer: CLIF, query: Query, height: int, width: int, *, patch_px: int, tile_px: int = 256) -> None:
        self.renderer, self.query = renderer, query
        self.rows, self.columns = window_starts(height, patch_px), window_starts(width, patch_px)
        self.height, self.width = min(patch_px, height), min(patch_px, width)
        self.at_once = max(1, tile_px * tile_px // (self.height * self.width))
        self._slots: OrderedDict[tuple[int, int], int] = OrderedDict()
        self._table = torch.empty(0)

    @torch.no_grad()
    def over(self, box: Box) -> LocalStatistics:
        """Of all norms for the pixels of `box`."""
        low_row, rows = blend(self.rows, self.height, box.y, box.height)
        low_column, columns = blend(self.columns, self.width, box.x, box.width)
        places = list(product(range(low_row, low_row + rows.shape[1]), range(low_column, low_column + columns.shape[1])))
        self._make(places)
        found = self._table[[self._slots[place] for place in places]]               # (i j, 2, N, B, G)
        mean, var = found.unflatten(0, (rows.shape[1], columns.shape[1])).permute(2, 3, 4, 5, 0, 1)
        return LocalStatistics(mean, var, rows.to(mean.device), columns.to(mean.device))

    def _make(self, places: Sequence[tuple[int, int]]) -> None:
        """See that the windows at those (row, column) of the grid of windows are in the table."""
        if len(places) > len(self._table):
            self._slots.clear()
        for place in places:
            if place in self._slots:
                self._slots.move_to_end(place)
        missing = [place for place in places if place not in self._slots]
        while missing:
            most = min(self.at_once, len(missing))
            group = missing[:1 << (most.bit_length() - 1)]      # a power of 2: a library that plans for a shape sees few
            missing = missing[len(group):]
            queries = [self.query(Box(self.rows[i], self.columns[j], self.height, self.width)) for i, j in group]
            made = torch.stack(self.renderer.own_statistics(torch.cat(queries)))     # (2, N, windows B, G)
            made = made.unflatten(2, (len(group), -1)).movedim(2, 0)                 # (windows, 2, N, B, G)
            if not self._slots and len(places) > len(self._table):
                self._table = made.new_empty((max(KEPT_WINDOWS, len(places)), *made.shape[1:]))
            for place, values in zip(group, made, strict=True):
                self._table[self._slot(place)] = values

    def _slot(self, place: tuple[int, int]) -> int:
        """A row of the table for a window: a free one, or that of the window that was not asked for the longest. One table,
        because thousands of small tensors that stay would keep the memory of large ones between them from being used again.
        """
        oldest = len(self._slots) == len(self._table)
        self._slots[place] = slot = self._slots.popitem(last=False)[1] if oldest else len(self._slots)
        return slot
