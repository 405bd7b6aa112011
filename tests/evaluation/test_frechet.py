"""Fréchet distance: closed forms, scipy's matrix root, torch-fidelity, singular covariances."""

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given
from hypothesis import strategies as st

from infd.compat import torchvision_ready
from infd.evaluation.errors import EvaluationError
from infd.evaluation.frechet import cross_root_trace, frechet, gaussian_distance, root
from infd.evaluation.moments import Moments


def covariance(dim: int, *, rank: int | None = None, seed: int = 0) -> np.ndarray:
    factor = np.random.default_rng(seed).normal(size=(dim, rank or 2 * dim))
    return factor @ factor.T / factor.shape[1]


def orthogonal(dim: int, seed: int) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(dim, dim)))[0]


def test_law_shifted_gaussians_are_apart_by_the_squared_shift():
    cov, shift = covariance(6), np.arange(6.0)
    assert gaussian_distance(shift, cov, np.zeros(6), cov) == pytest.approx(shift @ shift, rel=1e-12)


@given(st.lists(st.tuples(st.floats(0, 9), st.floats(0, 9)), min_size=1, max_size=8), st.integers(0, 50))
def test_law_commuting_covariances_are_apart_by_their_standard_deviations(variances, seed):
    a, b = np.array(variances).T
    turn = orthogonal(len(a), seed)
    found = gaussian_distance(np.zeros(len(a)), turn * a @ turn.T, np.zeros(len(a)), turn * b @ turn.T)
    assert found == pytest.approx(((np.sqrt(a) - np.sqrt(b)) ** 2).sum(), rel=1e-9, abs=2e-6)


def test_law_two_dimensions_in_closed_form():
    # tr (A B)^1/2 of two 2 x 2 matrices is sqrt(tr AB + 2 sqrt(det AB)).
    a, b = covariance(2, seed=1), covariance(2, seed=2)
    expected = np.sqrt(np.trace(a @ b) + 2 * np.sqrt(np.linalg.det(a @ b)))
    assert cross_root_trace(a, b) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("dim", [1, 3, 40])
def test_ref_the_root_is_scipys(dim):
    a, b = covariance(dim, seed=3), covariance(dim, seed=4)
    assert cross_root_trace(a, b) == pytest.approx(np.trace(scipy.linalg.sqrtm(a @ b)).real, rel=1e-9)
    np.testing.assert_allclose(root(a) @ root(a).T, a, atol=1e-12)


def test_ref_distance_is_torch_fidelitys():
    torchvision_ready()
    from torch_fidelity.metric_fid import fid_statistics_to_metric

    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(300, 48)), rng.normal(size=(200, 48)) @ covariance(48) + 0.3
    statistics = [{"mu": side.mean(0), "sigma": np.cov(side, rowvar=False)} for side in (x, y)]
    expected = fid_statistics_to_metric(*statistics, False)["frechet_inception_distance"]
    assert frechet(Moments.of(x), Moments.of(y)) == pytest.approx(expected, rel=1e-9)


def test_law_estimated_from_samples_it_nears_the_distance_of_the_gaussians():
    rng, dim = np.random.default_rng(5), 4
    a, b, shift = covariance(dim, seed=6), covariance(dim, seed=7), np.full(dim, 0.5)
    exact = gaussian_distance(np.zeros(dim), a, shift, b)
    x = rng.multivariate_normal(np.zeros(dim), a, size=40_000)
    y = rng.multivariate_normal(shift, b, size=40_000)
    assert frechet(Moments.of(x), Moments.of(y)) == pytest.approx(exact, rel=0.05)


def test_law_equal_moments_are_at_distance_0():
    moments = Moments.of(np.random.default_rng(0).normal(size=(500, 64)) * 10)
    assert frechet(moments, moments) <= 1e-8


def test_law_with_fewer_images_than_features_equal_sets_are_at_0_and_sides_may_be_exchanged():
    rng = np.random.default_rng(1)
    a, b = Moments.of(rng.normal(size=(12, 64))), Moments.of(rng.normal(size=(20, 64)))
    assert frechet(a, a) <= 1e-9
    assert frechet(a, b) == pytest.approx(frechet(b, a), rel=1e-10)
    # Of two subspaces at right angles nothing is shared: the sum of the variances.
    x, y = np.zeros((8, 10)), np.zeros((9, 10))
    x[:, :4], y[:, 4:] = rng.normal(size=(8, 4)), rng.normal(size=(9, 6))
    x, y = x - x.mean(0), y - y.mean(0)
    assert frechet(Moments.of(x), Moments.of(y)) == pytest.approx(x.var(0, ddof=1).sum() + y.var(0, ddof=1).sum(), rel=1e-10)


def test_ref_singular_covariances_against_the_root_of_regular_ones():
    # Singular ones are the limit of regular ones: adding e to the variances moves tr (AB)^1/2 by about sqrt(e).
    a, b = covariance(30, rank=7, seed=1), covariance(30, rank=11, seed=2)
    near = np.trace(scipy.linalg.sqrtm((a + 1e-10 * np.eye(30)) @ (b + 1e-10 * np.eye(30)))).real
    assert cross_root_trace(a, b) == pytest.approx(near, abs=1e-3)


def test_law_singular_covariances_with_known_factors_are_exact():
    # With A = F F^T and B = G G^T the trace of the root is the sum of the singular values of F^T G.
    rng = np.random.default_rng(4)
    f, g = rng.normal(size=(300, 6)), rng.normal(size=(300, 9))
    g[:, :3] = f[:, :3]
    expected = np.linalg.svd(f.T @ g, compute_uv=False).sum()
    assert cross_root_trace(f @ f.T, g @ g.T) == pytest.approx(expected, rel=1e-11)
    assert root(f @ f.T).shape == (300, 6)


def test_law_images_that_are_all_equal():
    flat = Moments.of(np.ones((5, 3)))
    assert frechet(flat, flat) == 0
    assert frechet(flat, Moments.of(np.zeros((4, 3)))) == 3


def test_law_divisor():
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(10, 3)), 2 * rng.normal(size=(10, 3)) + 1
    shift = x.mean(0) - y.mean(0)
    with_n = frechet(Moments.of(x), Moments.of(y), ddof=0) - shift @ shift
    assert frechet(Moments.of(x), Moments.of(y)) - shift @ shift == pytest.approx(with_n * 10 / 9, rel=1e-10)


def test_error_one_image_or_another_network():
    rng = np.random.default_rng(3)
    with pytest.raises(EvaluationError, match="covariance: 1 images; .* needs at least 2"):
        frechet(Moments.of(rng.normal(size=(1, 3))), Moments.of(rng.normal(size=(5, 3))))
    with pytest.raises(EvaluationError, match="3 features on one side, 4 on the other"):
        frechet(Moments.of(rng.normal(size=(5, 3))), Moments.of(rng.normal(size=(5, 4))))
