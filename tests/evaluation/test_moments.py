"""Moments: any split gives the same, files give back what was written."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infd.evaluation.errors import EvaluationError
from infd.evaluation.moments import Moments, from_bytes, from_npz, to_bytes, to_npz, total

DIM = 5


def features(count: int, *, seed: int = 0, offset: float = 0.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, DIM)) @ rng.normal(size=(DIM, DIM)) + offset


@st.composite
def splits(draw: st.DrawFn) -> tuple[np.ndarray, list[np.ndarray]]:
    """Features and a cut of their rows into pieces, some of them empty, in any order."""
    count = draw(st.integers(2, 60))
    x = features(count, seed=draw(st.integers(0, 99)), offset=draw(st.sampled_from([0.0, 1.0, 1e4])))
    cuts = sorted(draw(st.lists(st.integers(0, count), max_size=6)))
    return x, draw(st.permutations(np.split(x, cuts)))


def assert_same(found: Moments, expected: Moments) -> None:
    assert found.count == expected.count
    size = np.abs(expected.mean).max() + np.sqrt(np.diag(expected.covariance())).max()
    np.testing.assert_allclose(found.mean, expected.mean, rtol=0, atol=1e-9 * size)
    spread = np.sqrt(np.diag(expected.covariance()))
    np.testing.assert_allclose(found.covariance() / np.outer(spread, spread),
                               expected.covariance() / np.outer(spread, spread), rtol=0, atol=1e-9)


@given(splits())
def test_law_any_split_in_any_order_gives_the_same(split):
    x, pieces = split
    assert_same(total((Moments.of(piece) for piece in pieces), dim=DIM), Moments.of(x))


@given(splits())
def test_law_a_tree_of_sums_gives_the_same_as_a_chain(split):
    x, pieces = split
    level = [Moments.of(piece) for piece in pieces]
    while len(level) > 1:
        level = [level[i] + level[i + 1] if i + 1 < len(level) else level[i] for i in range(0, len(level), 2)]
    assert_same(level[0], Moments.of(x))


@pytest.mark.parametrize("ddof", [0, 1])
def test_ref_covariance_is_numpys(ddof):
    x = features(40)
    np.testing.assert_allclose(Moments.of(x).covariance(ddof=ddof), np.cov(x, rowvar=False, ddof=ddof), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(Moments.of(x).mean, x.mean(0), rtol=1e-14)


def test_law_moments_of_float32_are_made_in_float64():
    x = features(30).astype(np.float32)
    pieces = Moments.of(x[:11]) + Moments.of(x[11:])
    np.testing.assert_allclose(pieces.covariance(), np.cov(x.astype(np.float64), rowvar=False), rtol=1e-11)


def test_law_files_give_back_the_same_bits_and_equal_moments_equal_bytes():
    moments = Moments.of(features(9))
    again = from_bytes(to_bytes(moments, {"set": "a"}))
    assert again.count == 9
    np.testing.assert_array_equal(again.mean, moments.mean)
    np.testing.assert_array_equal(again.scatter, moments.scatter)
    assert to_bytes(again, {"set": "a"}) == to_bytes(moments, {"set": "a"})


def test_law_npz_holds_mu_and_sigma_as_other_tools_read_them():
    x = features(9)
    data = to_npz(Moments.of(x))
    with np.load(io.BytesIO(data)) as file:
        np.testing.assert_allclose(file["sigma"], np.cov(x, rowvar=False), rtol=1e-12)
    assert_same(from_npz(data), Moments.of(x))


def test_law_published_statistics_need_only_the_count():
    x = features(9)
    buffer = io.BytesIO()
    np.savez(buffer, mu=x.mean(0), sigma=np.cov(x, rowvar=False))
    assert_same(from_npz(buffer.getvalue(), count=9), Moments.of(x))
    with pytest.raises(EvaluationError, match=r"ffhq\.npz: the number of images is None; .*say how many"):
        from_npz(buffer.getvalue(), name="ffhq.npz")


@pytest.mark.parametrize("data", [b"", b"PK\3\4 no zip", to_bytes(Moments.of(features(4)))])
def test_error_another_file_is_not_taken_for_statistics(data):
    with pytest.raises(EvaluationError, match="x.npz: cannot be read"):
        from_npz(data, count=4, name="x.npz")


def test_law_npz_is_never_unpickled():
    buffer = io.BytesIO()
    np.savez(buffer, mu=np.array([{"a": 1}], dtype=object), sigma=np.eye(1))
    with pytest.raises(EvaluationError, match="cannot be read"):
        from_npz(buffer.getvalue(), count=4)


@pytest.mark.parametrize("cut", [0, 7, 40, 200])
def test_error_a_damaged_file_is_named(cut):
    data = to_bytes(Moments.of(features(9)))
    with pytest.raises(EvaluationError, match="cache/a: cannot be read as moments"):
        from_bytes(data[:cut], name="cache/a")


def test_error_features_that_are_not_finite_are_named():
    x = features(9)
    x[4, 2] = np.nan
    with pytest.raises(EvaluationError, match="image 4 of 9 has one that is not finite"):
        Moments.of(x)


def test_error_covariance_of_one_image():
    with pytest.raises(EvaluationError, match="covariance: 1 images; a divisor of N - 1 needs at least 2"):
        Moments.of(features(1)).covariance()
    assert np.count_nonzero(Moments.of(features(1)).covariance(ddof=0)) == 0
