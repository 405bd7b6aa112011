"""Features by blocks: many workers have the bits of one."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from evaluation.folders import folder
from evaluation.networks import random_network

from infd import storage
from infd.evaluation import collect
from infd.evaluation.collect import block_features, blocks, compute
from infd.evaluation.crops import OneCrop, plan
from infd.evaluation.moments import Moments, total
from infd.evaluation.sources import FolderSource

NETWORK = random_network()


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> FolderSource:
    return FolderSource(str(folder(tmp_path_factory.mktemp("set"), [(40, 40)] * 27)))


@pytest.fixture
def small_blocks(monkeypatch) -> None:
    monkeypatch.setattr(collect, "BLOCK", 10)


def test_law_blocks_computed_apart_have_the_bits_of_one_run(source, small_blocks):
    cuts = plan(OneCrop(p=24, r=40), source, source).a
    whole = compute(source, cuts, NETWORK, batch=4, keep=True)
    assert [len(block) for block in blocks(cuts)] == [10, 10, 7]
    copy = pickle.loads(pickle.dumps(source))                     # as a worker gets it
    apart = {index: block_features(copy, block, NETWORK, batch=4) for index, block in reversed(list(enumerate(blocks(cuts))))}
    assert whole.features is not None and whole.features.dtype == np.float32
    np.testing.assert_array_equal(np.concatenate([apart[index] for index in range(3)]), whole.features)
    summed = total((Moments.of(apart[index]) for index in range(3)), dim=NETWORK.dim)
    np.testing.assert_array_equal(summed.scatter, whole.moments.scatter)
    np.testing.assert_array_equal(summed.mean, whole.moments.mean)


def test_law_moments_are_those_of_the_features_and_none_are_kept_unasked(source, small_blocks):
    cuts = plan(OneCrop(p=24, r=40), source, source).a
    kept, bare = (compute(source, cuts, NETWORK, batch=4, keep=keep) for keep in (True, False))
    assert bare.features is None and kept.features is not None
    np.testing.assert_array_equal(bare.moments.scatter, kept.moments.scatter)
    np.testing.assert_allclose(bare.moments.covariance(), np.cov(kept.features.astype(np.float64), rowvar=False), rtol=1e-9,
                               atol=1e-12)


def test_law_a_worker_reads_only_its_own_images_and_none_twice(source, small_blocks, monkeypatch):
    cuts = plan(OneCrop(p=24, r=40), source, source).a            # which has looked at every file
    copy = pickle.loads(pickle.dumps(source))
    read, read_object = [], storage.read_object
    monkeypatch.setattr(storage, "read_object", lambda info: read.append(Path(info.uri).name) or read_object(info))
    block_features(copy, blocks(cuts)[1], NETWORK, batch=4)
    assert sorted(read) == [f"img{index:03}.png" for index in range(10, 20)]


def test_law_what_was_made_by_other_code_has_another_key(tmp_path, monkeypatch):
    package = tmp_path / "infd"
    (package / "data").mkdir(parents=True)
    for name in ("__init__.py", "data/order.py"):
        (package / name).write_text("one = 1\n")
    monkeypatch.setattr(collect.infd, "__file__", str(package / "__init__.py"))
    before = collect.source_sha256()
    (package / "notes.txt").write_text("not code")
    assert collect.source_sha256() == before
    (package / "data" / "order.py").write_text("one = 2\n")
    assert collect.source_sha256() != before
    assert set(collect.versions()) >= {"infd_source", "torch", "imagecodecs", "pillow-simd"}
