"""Coordinates and queries as published: points on [-1, 1]^2 in float32, where `infd.models.fields` counts in integers.

Where a point lies as near to two features, which one it takes falls by rounding.
"""

import torch
from torch import Tensor


def axis_coord(index: Tensor, side: Tensor | int) -> Tensor:
    """Centres of pixels `index` (int64) of an axis of `side` pixels."""
    return (2 * index + 1 - side) / side


def patch_coord(r: int, y: int, x: int, p: int) -> Tensor:
    """Pixel centres of the p x p patch at row y, column x of a view of side r: (p, p, 2), order (row, column)."""
    rows, columns = (axis_coord(torch.arange(start, start + p), r) for start in (y, x))
    return torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=-1)


def query(phi: Tensor, coord: Tensor, cell: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Nearest features (B, h, w, C), rel_coord and rel_cell (B, h, w, 2) at any points.

    phi (B, C, F, F); coord, cell (B, h, w, 2); a point outside takes the feature at the border.
    """
    sides = torch.tensor(phi.shape[-2:])
    nearest = ((coord + 1) / 2 * sides).floor().long().clamp(torch.zeros_like(sides), sides - 1)
    samples = torch.arange(phi.shape[0])[:, None, None]
    features = phi[samples, :, nearest[..., 0], nearest[..., 1]]
    return features, (coord - axis_coord(nearest, sides)) * sides, cell * sides
