"""The Fréchet distance of two Gaussians, from the moments of two sets of features.

d^2 = |mu_a - mu_b|^2 + tr A + tr B - 2 tr (A^1/2 B A^1/2)^1/2, with A and B the covariances.
Source: Dowson and Landau 1982; Heusel et al. 2017, eq. 6.
"""

import numpy as np

from infd.evaluation.errors import EvaluationError
from infd.evaluation.moments import Moments


def frechet(a: Moments, b: Moments, *, ddof: int = 1) -> float:
    """The squared distance that papers call FID where the features are Inception's.

    ddof: 1 divides the covariances by N - 1 (INFD, torch-fidelity), 0 by N (AnyRes-GAN).
    With fewer images than features the covariances are singular; the distance is defined and exact all the same, but its
    bias is large. Raises EvaluationError: fewer than 2 images (ddof 1), or features of different sizes.
    Law: 0 for equal moments, symmetric, never negative.
    """
    if a.dim != b.dim:
        raise EvaluationError(f"moments: {a.dim} features on one side, {b.dim} on the other; expected one network for both; "
                              "compute one of them anew")
    return gaussian_distance(a.mean, a.covariance(ddof=ddof), b.mean, b.covariance(ddof=ddof))


def gaussian_distance(mean_a: np.ndarray, cov_a: np.ndarray, mean_b: np.ndarray, cov_b: np.ndarray) -> float:
    """From means (D,) and covariances (D, D), which may be singular."""
    shift = np.asarray(mean_a, np.float64) - np.asarray(mean_b, np.float64)
    traces = float(np.trace(cov_a) + np.trace(cov_b))
    return max(0.0, float(shift @ shift) + traces - 2 * cross_root_trace(cov_a, cov_b))


def cross_root_trace(cov_a: np.ndarray, cov_b: np.ndarray) -> float:
    """tr (A^1/2 B A^1/2)^1/2 of two symmetric positive semi-definite matrices (D, D).

    With F F^T = A and G G^T = B the wanted eigenvalues are the squared singular values of F^T G; taking the singular
    values keeps the small ones, whose squares would drown in rounding.
    """
    product = root(cov_a).T @ root(cov_b)                           # (rank of A, rank of B)
    return float(np.linalg.svd(product, compute_uv=False).sum()) if product.size else 0.0


def root(covariance: np.ndarray) -> np.ndarray:
    """F (D, rank) with F F^T = covariance, by its eigenvalues; those within rounding of 0 are left out."""
    symmetric = (covariance + covariance.T) / 2
    values, vectors = np.linalg.eigh(symmetric)
    least = values[-1] * len(values) * np.finfo(np.float64).eps
    kept = values > max(least, 0.0)
    return vectors[:, kept] * np.sqrt(values[kept])
