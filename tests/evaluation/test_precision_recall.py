"""Precision and recall: ball by ball, torch-fidelity's numbers, blocks of any size."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from refs import metrics

from infd.compat import torchvision_ready
from infd.evaluation.errors import EvaluationError
from infd.evaluation.precision_recall import PrecisionRecallConfig, precision_recall


def two_sets(m: int, n: int, dim: int, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(m, dim)).astype(np.float32), (0.7 * rng.normal(size=(n, dim)) + 0.4).astype(np.float32)


@given(m=st.integers(5, 25), n=st.integers(5, 25), dim=st.integers(1, 5), k=st.integers(1, 4), block=st.integers(1, 30),
       seed=st.integers(0, 99))
def test_ref_ball_by_ball_for_any_block(m, n, dim, k, block, seed):
    real, generated = two_sets(m, n, dim, seed=seed)
    found = precision_recall(real, generated, PrecisionRecallConfig(k=k, block=block))
    assert found.precision == metrics.covered_share(generated.astype(float), real.astype(float), k)
    assert found.recall == metrics.covered_share(real.astype(float), generated.astype(float), k)


def test_ref_numbers_are_torch_fidelitys():
    torchvision_ready()
    from torch_fidelity.metric_prc import prc_features_to_metric

    real, generated = two_sets(150, 110, 12)
    expected = prc_features_to_metric(torch.from_numpy(generated).double(), torch.from_numpy(real).double(),
                                      prc_neighborhood=3, verbose=False)
    found = precision_recall(real, generated, PrecisionRecallConfig(block=64))
    assert found.precision == pytest.approx(expected["precision"], abs=1e-6)
    assert found.recall == pytest.approx(expected["recall"], abs=1e-6)
    assert 0.1 < found.recall < found.precision < 1


@pytest.mark.parametrize("block", [3, 7, 100])
@pytest.mark.parametrize("dim", [6, 128])
def test_law_equal_sets_even_of_equal_images_in_another_order_give_1(block, dim):
    rng = np.random.default_rng(0)
    real = np.repeat(rng.normal(size=(10, dim)) * 100 + 50, 5, axis=0)      # each image five times: balls of radius 0
    generated = real.astype(np.float32)[rng.permutation(50)]
    assert precision_recall(real.astype(np.float32), generated, PrecisionRecallConfig(block=block)) == (1, 1)


def test_law_sets_far_apart_give_0_and_a_shared_offset_changes_nothing():
    real, generated = two_sets(30, 30, 6)
    assert precision_recall(real, generated + 100) == (0, 0)
    assert precision_recall(real + 1000, generated + 1000) == precision_recall(real, generated)


def test_law_both_fall_as_sets_move_apart():
    real, near = two_sets(300, 300, 3)[0], two_sets(300, 300, 3, seed=9)[0]
    found = [precision_recall(real, near + shift) for shift in (0.0, 0.7, 1.4, 2.1, 2.8)]
    for values in zip(*found, strict=True):
        assert list(values) == sorted(values, reverse=True) and len(set(values)) == 5
    assert min(found[0]) > 0.9


def test_law_a_collapsed_generator_has_precision_but_no_recall():
    rng = np.random.default_rng(1)
    real = rng.normal(size=(200, 3))
    found = precision_recall(real, np.zeros((200, 3)) + 0.01 * rng.normal(size=(200, 3)))
    assert found.precision > 0.95 and found.recall < 0.05


def test_error_too_few_images():
    real, generated = two_sets(9, 3, 2)
    with pytest.raises(EvaluationError, match=r"generated set: 3 images; precision_recall\.k=3 needs at least 4"):
        precision_recall(real, generated)
