"""Ingest, refresh and loader against a store that fails: nothing lost, nothing doubled, the same bytes."""

import os
import signal
import threading
import time

import pytest
import torch
from faults.proxy import FAULTS, Faults
from pictures import encoded, picture

from infd import s3, storage
from infd.config import CropConfig, IngestConfig, LoaderConfig
from infd.data.loader import Batch, Loader
from infd.data.order import Order
from infd.data.snapshot import open_dataset
from infd.errors import PreconditionFailed
from pipelines.ingest import ingest
from pipelines.refresh import refresh

CONFIG = IngestConfig(codec="png", tile_px=64, min_side_px=48, shard_bytes=30_000, val_fraction=0.1)
CROP = CropConfig(patch_px=24, lowres_px=32, r_min=24, r_max=64)

pytestmark = pytest.mark.slow


def put_photos(uri: str, seeds: range) -> None:
    for seed in seeds:
        storage.put_atomic(f"{uri}/p {seed:02d}%é+.png", encoded(picture(64 + seed % 7, 50 + seed % 5, seed)))


def seen(dataset: str) -> dict[str, bytes]:
    """Every object of a dataset that must be equal in equal ingests."""
    names = [info.uri for info in storage.list_objects(dataset) if not info.uri.endswith(("finished.json", "refresh.md"))]
    return {name.removeprefix(dataset): storage.read_bytes(name) for name in names}


# ---------------------------------------------------------------- single requests


@pytest.mark.parametrize("kind", FAULTS)
def test_law_each_fault_is_survived_by_each_operation(bucket, through, kind, monkeypatch, tmp_path):
    monkeypatch.setattr(s3, "PART_BYTES", 5 << 20)
    large = tmp_path / "large"
    large.write_bytes(b"0123456789abcdef" * (11 << 16))  # 11 MiB: three parts
    with through(Faults(0, 0.0, delay_s=0.3)) as proxy:
        def harm(method: str, path: str = "") -> None:
            proxy.faults.force(kind, method, path)

        for _ in range(2):
            harm("PUT", "/a")
            storage.put_atomic(f"{bucket}/a", b"first")
            harm("GET", "/a")
            data, etag = storage.read_with_etag(f"{bucket}/a")
            assert data == b"first"
            harm("PUT", "/a")
            storage.replace_if_unchanged(f"{bucket}/a", b"second", etag)
            assert storage.read_bytes(f"{bucket}/a") == b"second"
            harm("PUT", "/b")
            storage.put_if_absent(f"{bucket}/b", b"mine")
            with pytest.raises(PreconditionFailed):
                storage.put_if_absent(f"{bucket}/b", b"theirs")
            harm("GET", "list-type")
            if kind != "flipped":  # no client can tell: a listing has no hash
                assert sorted(i.uri.removeprefix(bucket) for i in storage.list_objects(bucket)) == ["/a", "/b"]
            harm("HEAD", "/b")
            assert storage.exists(f"{bucket}/b")
            for method, path in (("POST", "uploads"), ("PUT", "partNumber=2"), ("POST", "uploadId")):
                harm(method, path)
            storage.put_file(f"{bucket}/c", str(large))
            harm("GET", "/c")
            storage.get_file(f"{bucket}/c", str(tmp_path / "back"))
            if kind != "flipped":  # the caller knows the hash of such a file
                assert (tmp_path / "back").read_bytes() == large.read_bytes()
            harm("POST", "delete")
            s3.delete([f"{bucket}/{name}" for name in "abc"])
            assert not storage.exists(f"{bucket}/a")
    assert proxy.faults.injected[kind] >= (2 if kind == "flipped" else 20)


def test_law_of_two_writers_one_wins_although_answers_are_lost(bucket, through, monkeypatch):
    monkeypatch.setattr(s3, "FIRST_WAIT_S", 0.02)
    with through(Faults(1, 0.5, ("lost", "reset", "500"))) as proxy:
        for turn in range(10):
            won: list[int] = []

            def write(me: int, uri: str = f"{bucket}/turn {turn}", won: list[int] = won) -> None:
                try:
                    storage.put_if_absent(uri, f"writer {me}".encode())
                    won.append(me)
                except PreconditionFailed:
                    pass

            threads = [threading.Thread(target=write, args=(me,)) for me in range(4)]
            [thread.start() for thread in threads]
            [thread.join() for thread in threads]
            assert len(won) == 1
            assert storage.read_bytes(f"{bucket}/turn {turn}") == f"writer {won[0]}".encode()
    assert proxy.faults.injected["lost"] > 5


# ---------------------------------------------------------------- the whole


@pytest.mark.parametrize(("share", "delay_s", "least"), [(0.05, 2.0, 5), (0.3, 0.1, 50)])
def test_law_a_failing_store_changes_no_byte_of_two_ingests(
    bucket, through, here, monkeypatch, share, delay_s, least
):
    if share > 0.1:
        monkeypatch.setattr(s3, "FIRST_WAIT_S", 0.02)
    put_photos(f"{bucket}/photos", range(60))
    storage.put_atomic(f"{bucket}/photos/notes.txt", b"no photo")
    calm, harmed = f"{bucket}/calm", f"{bucket}/harmed"
    faults = Faults(4, share, delay_s=delay_s)

    def both() -> tuple[str, str]:
        one = ingest(f"{bucket}/photos", calm, config=CONFIG).snapshot_uri
        with through(faults):
            return one, ingest(f"{bucket}/photos", harmed, config=CONFIG).snapshot_uri

    assert both() == (f"{calm}@1", f"{harmed}@1")
    assert seen(calm) == seen(harmed)
    put_photos(f"{bucket}/photos", range(50, 80))  # ten of them as they were, and twenty new
    storage.put_atomic(f"{bucket}/photos/p 03%é+.png", encoded(picture(90, 60, 1000)))
    assert both() == (f"{calm}@2", f"{harmed}@2")
    assert seen(calm) == seen(harmed)
    dataset = open_dataset(f"{harmed}@2")
    names = [dataset[row]["uri"] for row in range(len(dataset))]
    assert len(names) == len(set(names)) == 80
    assert sum(faults.injected.values()) >= least
    if share > 0.1:
        assert set(faults.injected) == set(FAULTS)
    print(f"\n{sum(faults.requests.values())} requests, injected {dict(faults.injected)}")


@pytest.mark.parametrize(("share", "delay_s", "least"), [(0.05, 2.0, 3), (0.3, 0.1, 20)])
def test_law_a_failing_store_loses_and_doubles_no_row_of_a_refresh(
    bucket, through, here, monkeypatch, share, delay_s, least
):
    """The lease, listing, reading, writing, verifying and committing of a refresh, with photos new, changed and gone."""
    if share > 0.1:
        monkeypatch.setattr(s3, "FIRST_WAIT_S", 0.02)
    photos, calm, harmed = (f"{bucket}/{name}" for name in ("photos", "calm", "harmed"))
    put_photos(photos, range(40))
    for dataset in (calm, harmed):
        ingest(photos, dataset, config=CONFIG)
    put_photos(photos, range(40, 60))
    storage.put_atomic(f"{photos}/p 03%é+.png", encoded(picture(90, 60, 1000)))
    for number in (5, 6, 7):
        storage.delete(f"{photos}/p {number:02d}%é+.png")
    faults = Faults(8, share, delay_s=delay_s)
    faults.force("flipped", "GET", "/shards/")  # what is verified is what the store has, not what came
    there = refresh(calm, remove_missing=True)
    with through(faults):
        here_too = refresh(harmed, remove_missing=True)
    assert (there.exit_code, here_too.exit_code) == (0, 0), here_too.report
    assert (there.snapshot_uri, here_too.snapshot_uri) == (f"{calm}@2", f"{harmed}@2")
    assert seen(calm) == seen(harmed)
    dataset = open_dataset(f"{harmed}@2")
    names = [dataset[row]["uri"] for row in range(len(dataset))]
    assert sorted(names) == sorted(info.uri for info in storage.list_objects(photos)) and len(names) == 57
    assert sum(faults.injected.values()) >= least
    print(f"\n{sum(faults.requests.values())} requests, injected {dict(faults.injected)}")


@pytest.fixture
def noise(bucket, here) -> str:
    """A dataset of 40 photos in many small shards."""
    put_photos(f"{bucket}/photos", range(40))
    ingest(f"{bucket}/photos", f"{bucket}/noise", config=CONFIG)
    return f"{bucket}/noise"


def loader_of(uri: str, **config: int) -> Loader:
    dataset = open_dataset(uri)
    whole = max(shard.bytes for shard in dataset.manifest.shards)
    order = Order(dataset.manifest, CROP, batch=4, seed=0)
    return Loader(dataset, order, LoaderConfig(cache_bytes=3 * whole, **config), slots=range(4))


def take(uri: str, count: int) -> list[Batch]:
    with loader_of(uri) as batches:
        return [next(batches) for _ in range(count)]


def assert_same(ours: list[Batch], theirs: list[Batch]) -> None:
    for a, b in zip(ours, theirs, strict=True):
        assert a.rows == b.rows
        assert torch.equal(a.patch, b.patch) and torch.equal(a.lowres, b.lowres)


@pytest.mark.parametrize(("share", "delay_s", "least"), [(0.05, 2.0, 2), (0.3, 0.1, 20)])
def test_law_a_failing_store_changes_no_batch(noise, through, monkeypatch, share, delay_s, least):
    if share > 0.1:
        monkeypatch.setattr(s3, "FIRST_WAIT_S", 0.02)
    calm = take(noise, 60)
    with through(Faults(5, share, delay_s=delay_s)) as proxy:
        assert_same(calm, take(noise, 60))
    assert sum(proxy.faults.injected.values()) >= least
    print(f"\n{sum(proxy.faults.requests.values())} requests, injected {dict(proxy.faults.injected)}")


@pytest.mark.parametrize("gone_s", [4.0, pytest.param(30.0, marks=pytest.mark.long)])
def test_law_a_loader_survives_a_store_that_is_gone(noise, through, gone_s):
    calm = take(noise, 60)
    with through(Faults(6, 0.0)) as proxy, loader_of(noise) as batches:
        found = [next(batches) for _ in range(10)]
        proxy.stop()
        back = threading.Timer(gone_s, proxy.start)
        back.start()
        began_s = time.monotonic()
        found += [next(batches) for _ in range(50)]
        took_s = time.monotonic() - began_s
        back.join()
        assert_same(calm, found)
        assert gone_s - 1 < took_s < gone_s + 15  # it did wait for the store, and went on soon
        assert batches.stats()["wait_s"] > gone_s - 1


def test_law_ctrl_c_does_not_wait_for_a_store_that_is_gone(noise, through, monkeypatch):
    """Who waits is let go when the store comes back: no time limit could end a loader that closes."""
    monkeypatch.setattr(s3, "PATIENCE_S", 1e6)
    with through(Faults(7, 0.0)) as proxy:
        batches = loader_of(noise)
        next(batches)
        proxy.stop()
        back = threading.Timer(60.0, proxy.start)
        back.start()
        threading.Timer(2.0, os.kill, (os.getpid(), signal.SIGINT)).start()
        try:
            with pytest.raises(KeyboardInterrupt):
                for _ in range(60):
                    next(batches)
            assert back.is_alive()
            assert not [thread for thread in threading.enumerate() if thread.name.startswith("infd-")]
        finally:
            back.cancel()
