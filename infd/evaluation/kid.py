"""Kernel distance: the unbiased squared MMD with a polynomial kernel, over random subsets. "KID" with Inception's features.

Source: Binkowski et al. 2018, section 4; subsets and defaults as in torch-fidelity 0.4.
Shapes: M, N images, D features.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from infd.config import require
from infd.evaluation.errors import EvaluationError, require_images

BLOCK_ROWS = 1024
"""Rows of a kernel matrix in memory at once."""


@dataclass(frozen=True, kw_only=True)
class KidConfig:
    """Kernel (gamma x.y + coef)^degree, and how it is averaged."""

    subsets: int = 100
    """Random subsets; each is drawn from both sides, without repetition."""
    subset_size: int = 1000
    """Images of a subset; each side must have as many."""
    degree: int = 3
    """Of the polynomial."""
    gamma: float = 0.0
    """Factor of the inner product; 0: 1 / D."""
    coef: float = 1.0
    """Constant inside the power."""
    seed: int = 2020
    """Of the subsets; 2020 is torch-fidelity's."""

    def __post_init__(self) -> None:
        require(self.subsets >= 1, "kid.subsets", self.subsets, "must be at least 1")
        require(self.subset_size >= 2, "kid.subset_size", self.subset_size, "must be at least 2")
        require(self.degree >= 1, "kid.degree", self.degree, "must be at least 1")
        require(self.gamma >= 0, "kid.gamma", self.gamma, "must be at least 0")


DEFAULT = KidConfig()


class Kid(NamedTuple):
    """A kernel distance and how sure it is."""

    mean: float
    """Over subsets; unbiased, so it may be a little below 0."""
    std: float
    """Over subsets (divided by their number), as torch-fidelity reports."""
    standard_error: float | None
    """Of the mean. Subsets share images, so no more of them count than would fit side by side into the smaller set; None where
    two do not fit, because the spread of subsets that are nearly the same says nothing."""


def kid(a: np.ndarray, b: np.ndarray, config: KidConfig = DEFAULT) -> Kid:
    """Of features (M, D) and (N, D).

    Raises EvaluationError: fewer images than a subset needs.
    Law: the same features, in the same order, give the same numbers; features of torch-fidelity give its numbers.
    """
    for side, features in (("first", a), ("second", b)):
        require_images(len(features), config.subset_size, what=f"{side} set", rule="kid.subset_size (--kid-subset-size)")
    if a.shape[1] != b.shape[1]:
        raise EvaluationError(f"features: {a.shape[1]} on one side, {b.shape[1]} on the other; expected one network for "
                              "both; compute one of them anew")
    draws = np.random.RandomState(config.seed)  # the legacy generator, whose stream NumPy has frozen
    values = []
    for _ in range(config.subsets):
        one = draws.choice(len(a), config.subset_size, replace=False)
        two = draws.choice(len(b), config.subset_size, replace=False)
        values.append(polynomial_mmd(a[one], b[two], config))
    spread = float(np.std(values))
    independent = min(config.subsets, min(len(a), len(b)) // config.subset_size)
    return Kid(float(np.mean(values)), spread, spread / float(np.sqrt(independent)) if independent > 1 else None)


def polynomial_mmd(x: np.ndarray, y: np.ndarray, config: KidConfig = DEFAULT) -> float:
    """Unbiased squared MMD of x (M, D) and y (N, D), float64. Source: Gretton et al. 2012, lemma 6, eq. 3."""
    m, n = len(x), len(y)
    within = kernel_sum(x, x, config) - diagonal_sum(x, config), kernel_sum(y, y, config) - diagonal_sum(y, config)
    return within[0] / (m * (m - 1)) + within[1] / (n * (n - 1)) - 2 * kernel_sum(x, y, config) / (m * n)


def kernel_sum(x: np.ndarray, y: np.ndarray, config: KidConfig) -> float:
    """Sum of the kernel over all pairs, BLOCK_ROWS rows at a time."""
    right = np.asarray(y, np.float64).T
    sums = [float(kernel_of(np.asarray(x[start:start + BLOCK_ROWS], np.float64) @ right, x.shape[1], config).sum())
            for start in range(0, len(x), BLOCK_ROWS)]
    return float(np.sum(sums))


def diagonal_sum(x: np.ndarray, config: KidConfig) -> float:
    """Sum of the kernel of every image with itself."""
    return float(kernel_of(np.square(np.asarray(x, np.float64)).sum(axis=1), x.shape[1], config).sum())


def kernel_of(inner: np.ndarray, dim: int, config: KidConfig) -> np.ndarray:
    """(gamma x.y + coef)^degree of inner products."""
    return (inner * (config.gamma or 1 / dim) + config.coef) ** config.degree
