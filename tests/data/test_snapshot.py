"""Datasets: manifests as arrays, photos by row, commits that one writer wins, addresses that name what is missing."""

import json
import os
import pickle
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from pictures import encoded, picture

import infd
from infd import storage
from infd.config import IngestConfig
from infd.data import shards, snapshot
from infd.data.pyramid import View
from infd.data.snapshot import Dataset, open_dataset, write_dataset
from infd.errors import DatasetError, PreconditionFailed, StorageError
from infd.storage import Unreadable

CONFIG = IngestConfig(codec="png", tile_px=128, min_side_px=64, shard_bytes=300_000, val_fraction=0.5)
SIDES = [(300, 200), (64, 500), (257, 256), (400, 400), (128, 90), (200, 300)]


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> str:
    return str(tmp_path_factory.mktemp("snapshot") / "ds")


@pytest.fixture(scope="module")
def dataset(root) -> Dataset:
    return write_dataset(sources(), root, CONFIG, group="hr")


def sources() -> Iterator[tuple[str, bytes]]:
    for i, (w, h) in enumerate(SIDES):
        yield f"mem://{i}.png", encoded(picture(w, h, i))
    yield "mem://text", b"hello"
    yield "mem://again.png", encoded(picture(*SIDES[0], 0))


@pytest.mark.slow
def test_law_every_photo_reads_back(dataset):
    assert len(dataset) == len(SIDES) and len(dataset.manifest.shards) > 1
    for i, (w, h) in enumerate(SIDES):
        facts, pixels = dataset[i], np.asarray(picture(w, h, i))
        assert (facts["uri"], facts["width"], facts["height"], facts["group"]) == (f"mem://{i}.png", w, h, "hr")
        assert facts["meta"] == {"format": "PNG"}
        for offset in ("center", 0.0, 1.0):
            view = dataset.view(i, offset)
            assert_array_equal(dataset.patch(i, r=view.side, y=7, x=3, size=50, view=offset),
                               pixels[view.y + 7:view.y + 57, view.x + 3:view.x + 53])


def test_law_the_manifest_says_what_the_shards_hold(dataset):
    manifest = dataset.manifest
    facts = [dataset[i] for i in range(len(dataset))]
    assert_array_equal(manifest.short_side, [min(f["width"], f["height"]) for f in facts])
    assert_array_equal(manifest.long_side, [max(f["width"], f["height"]) for f in facts])
    assert_array_equal(manifest.split, [f["split"] == "val" for f in facts])
    assert 0 < manifest.split.sum() < len(dataset)
    assert [manifest.group_names[c] for c in manifest.group] == ["hr"] * len(dataset)
    assert manifest.first_row[-1] == sum(entry.rows for entry in manifest.shards) == len(dataset)
    assert manifest.info["counts"]["rejected"] == {"unsupported": 1, "duplicate": 1}
    assert manifest.info["counts"]["photos"] == len(SIDES)


def test_law_lowres_is_the_stored_one_or_made_of_tiles(dataset):
    stored = dataset.lowres(3)
    assert stored.shape == (256, 256, 3) and stored.flags.writeable
    assert_array_equal(stored, np.asarray(picture(400, 400, 3).resize((256, 256), 1)))
    assert dataset.lowres(3, size=64).shape == (64, 64, 3)
    assert dataset.lowres(0, size=100, view=0.0).shape == (100, 100, 3)
    assert (dataset.lowres(0, size=100, view=0.0) != dataset.lowres(0, size=100)).any()
    assert_array_equal(dataset.lowres(0, size=100, view=0.5), dataset.lowres(0, size=100))
    assert dataset.lowres(3, size=300).shape == (300, 300, 3)
    with pytest.raises(ValueError, match="nothing is enlarged"):
        dataset.lowres(1)


def test_law_equal_sources_give_equal_snapshots(dataset, root, tmp_path):
    again = write_dataset(sources(), str(tmp_path / "other"), CONFIG, group="hr")
    assert Path(snapshot.manifest_uri(again.uri, 1)).read_bytes() == Path(snapshot.manifest_uri(root, 1)).read_bytes()


def test_law_threads_read_the_same(dataset):
    jobs = [(row, r) for row in range(len(dataset)) for r in (50, 60)] * 5
    def read(job: tuple[int, int]) -> bytes:
        return dataset.patch(job[0], r=job[1], y=1, x=2, size=40).tobytes()

    alone = [read(job) for job in jobs]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(read, jobs)) == alone


def test_law_a_dataset_pickles_as_its_address(dataset):
    copy = pickle.loads(pickle.dumps(dataset))
    assert copy.snapshot_uri == dataset.snapshot_uri
    assert_array_equal(copy.patch(2, r=90, y=0, x=0, size=90), dataset.patch(2, r=90, y=0, x=0, size=90))


def test_law_open_dataset_is_public(dataset, root):
    assert infd.open_dataset(root).snapshot_uri == infd.open_dataset(f"{root}@1").snapshot_uri == dataset.snapshot_uri
    assert infd.open_dataset(f"{root}/").snapshot_uri == dataset.snapshot_uri
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = infd.nothing


def test_law_fetch_is_replaceable(dataset):
    asked: list[str] = []
    mine = open_dataset(dataset.snapshot_uri)

    def fetch(entry: snapshot.ShardEntry) -> str:
        asked.append(entry.sha256)
        return storage.local_path(mine.shard_uri(entry))

    mine.fetch = fetch
    mine.patch(0, r=64, y=0, x=0, size=64)
    mine.patch(0, r=70, y=0, x=0, size=64)
    assert asked == [mine.manifest.shards[0].sha256]
    mine.forget(asked[0])
    assert mine[0]["uri"] == "mem://0.png" and len(asked) == 2


# ---------------------------------------------------------------- manifests


@st.composite
def entries(draw: st.DrawFn) -> list[dict]:
    made = []
    for number in range(draw(st.integers(0, 5))):
        rows = draw(st.integers(1, 6))
        sides = draw(st.lists(st.tuples(st.integers(1, 999), st.integers(1, 999)), min_size=rows, max_size=rows))
        groups = draw(st.lists(st.sampled_from(["", "hr", "lr"]), min_size=rows, max_size=rows))
        splits = draw(st.lists(st.sampled_from(["train", "val"]), min_size=rows, max_size=rows))
        dropped = sorted(draw(st.sets(st.integers(0, rows - 1), max_size=rows - 1)))
        names = [f"{number}-{row}" for row in range(rows)]
        made.append({"sha256": f"{number:064x}", "bytes": 10 + number, "rows": rows, "dropped": dropped,
                     "short_sides": [min(s) for s in sides], "long_sides": [max(s) for s in sides], "groups": groups,
                     "splits": splits, "image_ids": names, "uris": names, "etags": names})
    return made


@given(entries())
def test_law_rows_are_the_photos_that_were_not_dropped(made):
    manifest = snapshot.manifest_of(pa.Table.from_pylist(made, snapshot.ENTRY))
    expected = [(s, r) for s, entry in enumerate(made) for r in range(entry["rows"]) if r not in entry["dropped"]]
    assert [manifest.locate(row) for row in range(len(manifest))] == expected
    for row, (s, r) in enumerate(expected):
        assert manifest.short_side[row] == made[s]["short_sides"][r]
        assert manifest.long_side[row] == made[s]["long_sides"][r]
        assert manifest.group_names[manifest.group[row]] == made[s]["groups"][r]
        assert manifest.split[row] == (made[s]["splits"][r] == "val")
    assert manifest.group_names == sorted(manifest.group_names)
    for row in (-1, len(manifest)):
        with pytest.raises(IndexError):
            manifest.locate(row)


@given(entries())
def test_law_manifest_bytes_are_a_function_of_the_entries(made):
    assert snapshot.manifest_bytes(made, {"b": 1, "a": 2}) == snapshot.manifest_bytes(made, {"a": 2, "b": 1})
    assert snapshot.counts(made)["photos"] == sum(e["rows"] - len(e["dropped"]) for e in made)


def test_law_dropped_photos_have_no_row(dataset, tmp_path):
    table = snapshot.read_table(dataset.uri, 1).to_pylist()
    table[0]["dropped"] = [0]
    os.symlink(os.path.join(dataset.uri, "shards"), tmp_path / "shards")
    snapshot.commit(str(tmp_path), 1, snapshot.manifest_bytes(table, {}))
    fewer = open_dataset(str(tmp_path))
    assert [fewer[i]["uri"] for i in range(len(fewer))] == [f"mem://{i}.png" for i in range(1, len(SIDES))]


# ---------------------------------------------------------------- commits


def manifest(number: int) -> bytes:
    return snapshot.manifest_bytes([], {"number": number})


def test_law_one_of_many_committers_wins(tmp_path):
    root, won, lost = str(tmp_path), [], []
    barrier = threading.Barrier(8)

    def race(who: int) -> None:
        barrier.wait()
        try:
            won.append(snapshot.commit(root, 1, manifest(who)))
        except PreconditionFailed as error:
            lost.append(str(error))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(race, range(8)))
    assert won == [f"{root}@1"] and len(lost) == 7 and "run this one again" in lost[0]
    assert (tmp_path / "latest").read_text() == "1"


def test_law_a_commit_can_be_repeated_after_a_crash(tmp_path):
    root = str(tmp_path)
    snapshot.commit(root, 1, manifest(1))
    storage.put_if_absent(snapshot.manifest_uri(root, 2), manifest(2))  # died before `latest`
    assert (tmp_path / "latest").read_text() == "1" and snapshot.newest_number(root) == 2
    assert snapshot.commit(root, 2, manifest(2)) == f"{root}@2"
    assert (tmp_path / "latest").read_text() == "2"
    with pytest.raises(PreconditionFailed):
        snapshot.commit(root, 2, manifest(3))


def test_law_latest_never_goes_back(tmp_path):
    root = str(tmp_path)
    for number in (1, 2, 3):
        snapshot.commit(root, number, manifest(number))
    snapshot.commit(root, 1, manifest(1))
    assert (tmp_path / "latest").read_text() == "3"


# ---------------------------------------------------------------- errors


def test_error_no_dataset_and_no_such_snapshot(dataset, root, tmp_path):
    with pytest.raises(DatasetError, match=r"none: no snapshot there; .*jobs/ingest.py"):
        open_dataset(str(tmp_path / "none"))
    with pytest.raises(DatasetError, match=r"ds@9: no such snapshot; its newest snapshot is 1"):
        open_dataset(f"{root}@9")
    with pytest.raises(DatasetError, match="a dataset stands there"):
        write_dataset(sources(), root, CONFIG)
    with pytest.raises(DatasetError, match="no photo among 1 source files"):
        write_dataset([("x", b"no")], str(tmp_path / "empty"), CONFIG)


def test_error_a_damaged_manifest_or_hint_is_named(tmp_path):
    storage.put_atomic(str(tmp_path / "snapshots" / "00000001.parquet"), b"PAR1 no")
    with pytest.raises(DatasetError, match=r"00000001.parquet: it cannot be read as a manifest"):
        open_dataset(str(tmp_path))
    storage.put_atomic(str(tmp_path / "latest"), b"what")
    with pytest.raises(DatasetError, match=r"latest: it holds b'what'; expected a number"):
        open_dataset(str(tmp_path))


@pytest.mark.parametrize("failure", [StorageError, Unreadable])
def test_error_a_store_that_fails_is_not_a_damaged_manifest(root, dataset, monkeypatch, failure):
    where, read = snapshot.manifest_uri(root, 1), storage.read_bytes

    def read_or_fail(uri: str) -> bytes:
        if uri == where:
            raise failure(f"{uri}: the store refused access (403); check the permissions of this key")
        return read(uri)

    monkeypatch.setattr(storage, "read_bytes", read_or_fail)
    with pytest.raises(failure, match=r"00000001.parquet: the store refused access"):
        open_dataset(root)


def test_error_a_manifest_of_another_format(tmp_path):
    data = snapshot.manifest_bytes([], {"format": "infd-snapshot-99"})
    storage.put_atomic(snapshot.manifest_uri(str(tmp_path), 1), data)
    with pytest.raises(DatasetError, match="format infd-snapshot-99; expected infd-snapshot-1"):
        open_dataset(str(tmp_path))


def test_error_a_damaged_shard_is_found_when_opened(tmp_path):
    made = write_dataset([("mem://0", encoded(picture(300, 200)))], str(tmp_path), CONFIG)
    path = Path(made.shard_uri(made.manifest.shards[0]))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(DatasetError, match=f"shard {path.name}: the bytes at"):
        open_dataset(str(tmp_path)).patch(0, r=64, y=0, x=0, size=64)


def test_error_a_wrong_view(dataset):
    with pytest.raises(ValueError, match="view=middle: expected 'center'"):
        dataset.patch(0, r=64, y=0, x=0, size=64, view="middle")
    assert dataset.patch(0, r=64, y=0, x=0, size=64, view=View(0, 0, 200)).shape == (64, 64, 3)


@pytest.mark.slow
def test_law_a_bucket_reads_like_a_folder(dataset, bucket, tmp_path, monkeypatch):
    monkeypatch.setenv("INFD_CACHE", str(tmp_path / "cache"))
    remote = write_dataset(sources(), f"{bucket}/ds é%20+x", CONFIG, group="hr")
    assert remote.snapshot_uri == f"{bucket}/ds é%20+x@1"
    assert json.dumps(remote.manifest.info) == json.dumps(dataset.manifest.info)
    for row in range(len(dataset)):
        assert_array_equal(remote.patch(row, r=64, y=0, x=0, size=64), dataset.patch(row, r=64, y=0, x=0, size=64))
    cached = sorted(os.listdir(tmp_path / "cache" / "shards"))
    assert cached == sorted(f"{entry.sha256}{shards.SUFFIX}" for entry in remote.manifest.shards)
    with pytest.raises(DatasetError, match="no snapshot there"):
        open_dataset(f"{bucket}/none")
