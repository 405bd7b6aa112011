"""Every key that a store or a disk accepts is ingested, or rejected by its name: none is lost."""

import os
import threading
import tracemalloc
from collections.abc import Iterator

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pictures import encoded, picture

from infd import s3, s3_client, storage
from infd.config import IngestConfig
from infd.data.snapshot import open_dataset
from infd.storage import ObjectInfo
from pipelines import ingest_plan, listing
from pipelines.ingest import ingest

CONFIG = IngestConfig(codec="png", tile_px=64, min_side_px=16)
KEYS = [
    "plain.png", "with space.png", " leading and trailing ", "tab\tand\nnewline.png", "ünï cödé/日本/🖼.png",
    "e\u0301.png", "\u00e9.png", "per%20cent.png", "per%cent.png", "%2F.png", "a+b.png", "q?x=1&y=2#f.png",
    "semi;colon,comma.png", "quote'\"`.png", "back\\slash.png", "<angle>&amp;.png", "star*[a-z]{b}.png", "..",
    "../up.png", "a/../b.png", "a/./b.png", "...", "..dots..png", "/leading.png", "//two.png", "mid//two.png",
    "trailing/", "~tilde", "$HOME.png", "@1.png", "snapshots/00000001.parquet", ".hidden", "CON", "x" * 250,
    "y" * 1000, "/".join(["z" * 99] * 10), "control\x01.png",
]
"""Of an S3 bucket; the last but two has 1,000 characters in one name, the last but one 999 in ten."""


def rejected(dataset: str) -> list[str]:
    info = open_dataset(dataset).manifest.info
    return [row["uri"] for row in ingest_plan.read_rows(f"{dataset}/runs/{info['run']}/rejects.parquet")]


def kept(dataset: str) -> list[str]:
    opened = open_dataset(dataset)
    return [opened[row]["uri"] for row in range(len(opened))]


@pytest.mark.slow
def test_law_no_key_of_a_bucket_is_lost(bucket, here):
    from botocore.exceptions import BotoCoreError, ClientError

    source = s3_client.address(f"{bucket}/photos")
    stored: dict[str, bytes] = {}
    refused: list[str] = []
    for seed, key in enumerate(KEYS):
        data = encoded(picture(20 + seed, 20, seed))
        try:
            s3_client.client().put_object(Bucket=source.bucket, Key=f"{source.key}/{key}", Body=data)
            stored[key] = data
        except (ClientError, BotoCoreError):
            refused.append(key)
    there = {info.uri.removeprefix(f"{bucket}/photos/"): info for info in storage.list_objects(f"{bucket}/photos")}
    print(f"\n{len(KEYS)} keys; the store refused {refused}; lists otherwise {sorted(stored.keys() ^ there.keys())}")
    assert len(there) >= len(KEYS) - 8
    ingest(f"{bucket}/photos", f"{bucket}/ds", config=CONFIG)
    names = kept(f"{bucket}/ds") + rejected(f"{bucket}/ds")
    assert sorted(names) == sorted(info.uri for info in there.values())
    assert [name for name in rejected(f"{bucket}/ds")] == []
    # What a store takes under its own name comes back by that name, and holds what was put.
    for key in stored.keys() & there.keys():
        assert storage.read_object(there[key]) == stored[key], key
    storage.delete_prefix(bucket)
    assert not list(storage.list_objects(bucket))


@pytest.mark.slow
def test_law_refresh_knows_every_key_again(bucket, here):
    for seed, key in enumerate(("a+b %.png", "ü/日本.png", "y" * 240)):
        storage.put_atomic(f"{bucket}/photos/{key}", encoded(picture(40 + seed, 30, seed)))
    assert ingest(f"{bucket}/photos", f"{bucket}/ds", config=CONFIG).is_new
    assert not ingest(f"{bucket}/photos", f"{bucket}/ds", config=CONFIG).is_new


def test_law_no_name_of_a_disk_is_lost(tmp_path, here):
    folder = os.fsencode(tmp_path / "photos")
    made = 0
    for seed, key in enumerate([*(key.strip("/").encode() for key in KEYS), b"not \xff utf-8.png", b"\xc3(.png", b"z" * 255]):
        path = folder + b"/" + key.replace(b"/../", b"/up/").replace(b"../", b"up/")
        if os.path.basename(path) == b".." or any(len(part) > 255 for part in path.split(b"/")):
            continue  # no file can have such a name
        os.makedirs(os.path.dirname(path), exist_ok=True)
        made += not os.path.exists(path)
        with open(path, "wb") as file:
            file.write(encoded(picture(20 + seed, 20, seed)))
    dataset = str(tmp_path / "ds")
    ingest(str(tmp_path / "photos"), dataset, config=CONFIG)
    assert sorted(os.path.basename(uri) for uri in rejected(dataset)) == ["\\xc3(.png", "not \\xff utf-8.png"]
    assert len(set(kept(dataset))) == made - 2 > 30
    assert not ingest(str(tmp_path / "photos"), dataset, config=CONFIG).is_new


# ---------------------------------------------------------------- memory


def many(count: int) -> Iterator[ObjectInfo]:
    """A store's listing: in order, uris of 90 characters."""
    for i in range(count):
        yield ObjectInfo(f"s3://bucket/photographs/2024/{i // 1000:08d}/{i:040d}.jpeg", f"{i:032x}", 3_000_000 + i)


def peak_of(work) -> int:
    """Bytes that `work()` had at most: Python's at one time, and Arrow's at one time."""
    pool, done, most = pa.default_memory_pool(), threading.Event(), [0]
    before = pool.bytes_allocated()

    def watch() -> None:
        while not done.wait(0.002):
            most[0] = max(most[0], pool.bytes_allocated() - before)

    watcher = threading.Thread(target=watch)
    watcher.start()
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1] + most[0]
    finally:
        tracemalloc.stop()
        done.set()
        watcher.join()


def test_law_listing_a_bucket_takes_the_same_memory_however_many_it_holds(monkeypatch):
    """Page by page: 1K and 100K objects alike."""
    class Client:
        def list_objects_v2(self, *, ContinuationToken: str = "0", **_: object) -> dict:
            start = int(ContinuationToken)
            items = [{"Key": f"photographs/{i:040d}.jpeg", "ETag": f'"{i:032x}"', "Size": i + 1}
                     for i in range(start, start + 1000)]
            return {"Contents": items, "IsTruncated": start + 1000 < count, "NextContinuationToken": str(start + 1000)}

    monkeypatch.setattr(s3, "client", Client)
    peaks = []
    for count in (1000, 10_000, 100_000):  # noqa: B007  the client reads it
        peaks.append(peak_of(lambda: sum(1 for _ in storage.list_objects("s3://bucket"))))
    print(f"\npeak bytes of a listing of 1K, 10K, 100K: {peaks}")
    assert peaks[2] < 1.5 * peaks[1] < 4 * peaks[0]


@given(st.lists(st.text(st.characters(codec="utf-8"), max_size=8), max_size=30), st.integers(1, 5))
def test_law_files_are_the_sorted_listing(names, chunk):
    infos = [ObjectInfo(name, f"e{i}", i) for i, name in enumerate(names)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(listing, "CHUNK", chunk)
        files = listing.in_order(iter(infos))
        wanted = sorted(infos, key=lambda info: info.uri.encode())
        assert [info.uri for info in files] == [info.uri for info in wanted] and sorted(files) == sorted(infos)
        assert files[1:4] == list(files)[1:4] and [files[i] for i in range(len(files))] == list(files)
        odd = files.where(lambda info: info.size % 2 == 1)
        assert list(odd) == [info for info in files if info.size % 2]


@pytest.mark.slow
def test_law_a_plan_costs_few_bytes_an_object(tmp_path, monkeypatch):
    peaks = []
    for count in (1000, 100_000):
        monkeypatch.setattr(storage, "list_objects", lambda uri, count=count: many(count) if "photos" in uri else iter(()))

        def plan() -> ingest_plan.Plan:
            made = ingest_plan.make_plan(str(tmp_path / "photos"), str(tmp_path / "ds"), config=IngestConfig(), group="")
            ingest_plan.write_plan(made)
            return made

        peaks.append(peak_of(plan))
    each = (peaks[1] - peaks[0]) / 99_000
    print(f"\npeak bytes of a plan of 1K, 100K: {peaks}; {each:.0f} an object")
    assert each < 400
