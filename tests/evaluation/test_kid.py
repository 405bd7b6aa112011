"""Kernel distance: pair by pair, torch-fidelity's numbers, an honest error."""

import numpy as np
import pytest
import torch
from refs import metrics

from infd.compat import torchvision_ready
from infd.errors import ConfigError
from infd.evaluation import kid as module
from infd.evaluation.errors import EvaluationError
from infd.evaluation.kid import KidConfig, kid, polynomial_mmd


def two_sets(m: int, n: int, dim: int, *, seed: int = 0, shift: float = 0.3) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(m, dim)).astype(np.float32), (rng.normal(size=(n, dim)) + shift).astype(np.float32))


@pytest.mark.parametrize(("degree", "gamma", "coef"), [(3, 0.0, 1.0), (2, 0.5, 0.0)])
def test_ref_mmd_pair_by_pair(degree, gamma, coef, monkeypatch):
    monkeypatch.setattr(module, "BLOCK_ROWS", 4)
    x, y = two_sets(9, 13, 6)
    found = polynomial_mmd(x, y, KidConfig(degree=degree, gamma=gamma, coef=coef))
    expected = metrics.mmd(x.astype(float), y.astype(float), degree=degree, gamma=gamma or 1 / 6, coef=coef)
    assert found == pytest.approx(expected, rel=1e-10)


def test_ref_numbers_are_torch_fidelitys():
    torchvision_ready()
    from torch_fidelity.metric_kid import kid_features_to_metric

    x, y = two_sets(120, 90, 32)
    expected = kid_features_to_metric(torch.from_numpy(x.astype(np.float64)), torch.from_numpy(y.astype(np.float64)),
                                      kid_subsets=7, kid_subset_size=50, verbose=False)
    found = kid(x, y, KidConfig(subsets=7, subset_size=50))
    assert found.mean == pytest.approx(expected["kernel_inception_distance_mean"], rel=1e-9)
    assert found.std == pytest.approx(expected["kernel_inception_distance_std"], rel=1e-9)


def test_law_the_same_features_give_the_same_numbers_and_another_seed_others():
    x, y = two_sets(80, 80, 8)
    config = KidConfig(subsets=5, subset_size=20)
    assert kid(x, y, config) == kid(x, y, config)
    assert kid(x, y, config).mean != kid(x, y, KidConfig(subsets=5, subset_size=20, seed=1)).mean


def test_law_it_is_unbiased_and_its_error_is_about_what_is_seen():
    config = KidConfig(subsets=20, subset_size=40)
    found = [kid(*two_sets(160, 160, 4, seed=seed, shift=0.0), config) for seed in range(60)]
    means = np.array([one.mean for one in found])
    seen = means.std(ddof=1)
    assert abs(means.mean()) < 3 * seen / np.sqrt(len(means))
    claimed = np.mean([one.standard_error for one in found])
    assert 0.5 < claimed / seen < 2


@pytest.mark.parametrize(("count", "known"), [(40, False), (79, False), (80, True), (400, True)])
def test_law_subsets_that_share_most_images_tell_no_error(count, known):
    x, y = two_sets(count, 400, 4)
    one = kid(x, y, KidConfig(subsets=10, subset_size=40))
    assert (one.standard_error is not None) == known


def test_error_fewer_images_than_a_subset():
    x, y = two_sets(30, 10, 4)
    with pytest.raises(EvaluationError, match=r"second set: 10 images; kid\.subset_size .*needs at least 20"):
        kid(x, y, KidConfig(subset_size=20))


def test_error_config():
    with pytest.raises(ConfigError, match="kid.subset_size=1: must be at least 2"):
        KidConfig(subset_size=1)
