"""Improved precision and recall: how much of one set of features lies inside the k-nearest-neighbour balls of the other.

Source: Kynkäänniemi et al. 2019, section 2. Distances are made block by block, so memory does not grow
with the number of pairs. Shapes: M, N images, D features.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from infd.config import require
from infd.evaluation.errors import EvaluationError, require_images

ROUNDING = 64 * torch.finfo(torch.float64).eps
"""Squared distances are equal within this share of the largest squared length: they come by different sums."""


@dataclass(frozen=True, kw_only=True)
class PrecisionRecallConfig:
    """Which balls."""

    k: int = 3
    """A ball reaches to the k-th nearest other image of its own set."""
    block: int = 4096
    """Rows and columns of distances in memory at once; no number depends on it."""

    def __post_init__(self) -> None:
        require(self.k >= 1, "precision_recall.k", self.k, "must be at least 1")
        require(self.block >= 1, "precision_recall.block", self.block, "must be at least 1")


DEFAULT = PrecisionRecallConfig()


class PrecisionRecall(NamedTuple):
    """Shares in [0, 1]."""

    precision: float
    """Of generated images that lie in a real image's ball."""
    recall: float
    """Of real images that lie in a generated image's ball."""


def precision_recall(
    real: np.ndarray,
    generated: np.ndarray,
    config: PrecisionRecallConfig = DEFAULT,
    *,
    device: str = "cpu",
) -> PrecisionRecall:
    """Of features (M, D) and (N, D); float64 on `device`.

    Raises EvaluationError: a set of k images or fewer.
    Law: the block size changes nothing; equal sets give 1 and 1; exchanging the sets exchanges the two numbers.
    """
    for side, features in (("real set", real), ("generated set", generated)):
        require_images(len(features), config.k + 1, what=side, rule=f"precision_recall.k={config.k}")
    if real.shape[1] != generated.shape[1]:
        raise EvaluationError(f"features: {real.shape[1]} on one side, {generated.shape[1]} on the other; expected one "
                              "network for both; compute one of them anew")
    centre = torch.from_numpy(np.asarray(real, np.float64).mean(axis=0)).to(device)
    a, b = (torch.from_numpy(np.asarray(side, np.float64)).to(device) - centre for side in (real, generated))
    slack = ROUNDING * float(torch.cat([a.square().sum(1), b.square().sum(1)]).max())
    radius_a, radius_b = (squared_radii(side, config) + slack for side in (a, b))
    return PrecisionRecall(precision=covered(b, a, radius_a, config.block), recall=covered(a, b, radius_b, config.block))


def squared_radii(x: Tensor, config: PrecisionRecallConfig) -> Tensor:
    """(N,) squared distance of each of x (N, D) to its k-th nearest other. Law: the block size changes nothing."""
    radii = []
    for rows in x.split(config.block):
        nearest = x.new_full((len(rows), 0), 0.0)
        for columns in x.split(config.block):
            both = torch.cat([nearest, squared_distances(rows, columns)], dim=1)
            nearest = both.topk(min(config.k + 1, both.shape[1]), largest=False).values   # itself is the nearest
        radii.append(nearest.amax(dim=1))
    return torch.cat(radii)


def covered(points: Tensor, centres: Tensor, squared: Tensor, block: int) -> float:
    """Share of points (M, D) that lie in a ball around one of centres (N, D) of these squared radii (N,)."""
    inside = 0
    for rows in points.split(block):
        found = torch.zeros(len(rows), dtype=torch.bool, device=points.device)
        for columns, radii in zip(centres.split(block), squared.split(block), strict=True):
            found |= (squared_distances(rows, columns) <= radii).any(dim=1)
        inside += int(found.sum())
    return inside / len(points)


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """(M, N) of x (M, D) and y (N, D)."""
    lengths = x.square().sum(1)[:, None] + y.square().sum(1)
    return torch.addmm(lengths, x, y.T, alpha=-2).clamp_min_(0)
