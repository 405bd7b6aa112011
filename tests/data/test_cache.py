"""Laws of the cache of shards: bounded, checked, never deleting what is in use."""

import fcntl
import hashlib
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infd import s3, storage
from infd.config import CropConfig
from infd.data.ahead import FetchAhead
from infd.data.cache import ShardCache
from infd.data.order import Order
from infd.data.snapshot import Manifest, ShardEntry
from infd.errors import DatasetError, StorageError


class Origin:
    """Shards in a folder, as a bucket would hold them; counts what is fetched."""

    def __init__(self, folder: Path, sizes: list[int]) -> None:
        self.folder = folder
        self.shards = []
        for i, size in enumerate(sizes):
            data = bytes([i]) * size
            entry = ShardEntry(sha256=hashlib.sha256(data).hexdigest(), bytes=size, rows=1)
            (folder / entry.sha256).write_bytes(data)
            self.shards.append(entry)

    def uri_of(self, shard: ShardEntry) -> str:
        return str(self.folder / shard.sha256)


@pytest.fixture
def origin(tmp_path: Path) -> Origin:
    folder = tmp_path / "origin"
    folder.mkdir()
    return Origin(folder, [100, 100, 100, 100, 250])


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of what `storage.get_file` fetched, in order."""
    names: list[str] = []
    real = storage.get_file

    def get_file(uri: str, path: str) -> None:
        names.append(os.path.basename(uri))
        real(uri, path)

    monkeypatch.setattr(storage, "get_file", get_file)
    return names


def files(cache: ShardCache) -> dict[str, int]:
    return {name: os.path.getsize(os.path.join(cache.folder, name))
            for name in os.listdir(cache.folder) if name.endswith(".arrow")}


def test_law_a_shard_is_fetched_once(origin: Origin, fetched: list[str]) -> None:
    cache = ShardCache("", max_bytes=1000, uri_of=origin.uri_of)
    for _ in range(3):
        with cache.use(origin.shards[0]) as path:
            assert Path(path).read_bytes() == b"\0" * 100
    assert fetched == [origin.shards[0].sha256]
    assert (cache.hits, cache.misses, cache.fetched_bytes) == (2, 1, 100)
    cache.close()


def test_law_threads_that_want_one_shard_share_one_fetch(
    origin: Origin, fetched: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    inside, go_on, real = threading.Event(), threading.Event(), storage.get_file

    def slow(uri: str, path: str) -> None:
        inside.set()
        assert go_on.wait(30)
        real(uri, path)

    monkeypatch.setattr(storage, "get_file", slow)
    cache = ShardCache("", max_bytes=1000, uri_of=origin.uri_of)
    with ThreadPoolExecutor(4) as pool:
        results = [pool.submit(cache.fetch, origin.shards[0]) for _ in range(4)]
        assert inside.wait(30)
        assert cache.held_bytes == 100  # what is coming counts
        go_on.set()
        assert {result.result() for result in results} == {cache.path(origin.shards[0])}
    assert len(fetched) == 1
    cache.close()


def test_law_least_recently_used_goes_first(origin: Origin, fetched: list[str]) -> None:
    gone: list[str] = []
    cache = ShardCache("", max_bytes=300, uri_of=origin.uri_of, on_evict=gone.append)
    a, b, c, d, _ = origin.shards
    for shard in (a, b, c, a, d):
        cache.fetch(shard)
    assert gone == [b.sha256]
    assert set(files(cache)) == {f"{shard.sha256}.arrow" for shard in (a, c, d)}
    cache.close()


def test_law_what_is_in_use_stays(origin: Origin) -> None:
    cache = ShardCache("", max_bytes=200, uri_of=origin.uri_of)
    a, b, c, d, large = origin.shards
    with cache.use(a) as path, cache.use(b):
        with cache.use(c):
            assert cache.held_bytes == 300  # the bound gives way to what is in use
        assert os.path.exists(path)
        assert not os.path.exists(cache.path(c))
    assert cache.held_bytes <= 200
    with cache.use(large) as path:
        assert os.path.getsize(path) == 250
        assert list(files(cache).values()) == [250]
    assert files(cache) == {}
    cache.close()


@given(asked=st.lists(st.integers(0, 4), max_size=40), max_bytes=st.integers(0, 600))
def test_law_folder_stays_within_its_bound(
    asked: list[int], max_bytes: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    origin = Origin(tmp_path_factory.mktemp("origin"), [100, 100, 100, 100, 250])
    cache = ShardCache("", max_bytes=max_bytes, uri_of=origin.uri_of)
    for i in asked:
        with cache.use(origin.shards[i]) as path:
            assert Path(path).read_bytes() == bytes([i]) * origin.shards[i].bytes
            assert cache.held_bytes <= max(max_bytes, origin.shards[i].bytes)
        assert cache.held_bytes == sum(files(cache).values()) <= max_bytes
    cache.close()


def test_law_many_threads_keep_the_bound_and_the_bytes(origin: Origin) -> None:
    cache = ShardCache("", max_bytes=250, uri_of=origin.uri_of)

    def use(n: int) -> None:
        i = n * 7 % 5
        with cache.use(origin.shards[i]) as path:
            assert Path(path).read_bytes() == bytes([i]) * origin.shards[i].bytes

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(use, range(400)))
    assert cache.held_bytes == sum(files(cache).values()) <= 250
    assert cache.hits + cache.misses == 400
    cache.close()


def damage_on_the_way(monkeypatch: pytest.MonkeyPatch, times: int) -> list[str]:
    """The first `times` fetches arrive with a wrong byte; returns what is fetched."""
    real, names = storage.get_file, []

    def get_file(uri: str, path: str) -> None:
        real(uri, path)
        names.append(uri)
        if len(names) <= times:
            data = bytearray(Path(path).read_bytes())
            data[-1] ^= 1
            Path(path).write_bytes(data)

    monkeypatch.setattr(storage, "get_file", get_file)
    return names


def test_law_a_damaged_shard_is_fetched_again(origin: Origin, monkeypatch: pytest.MonkeyPatch) -> None:
    names = damage_on_the_way(monkeypatch, times=1)
    cache = ShardCache("", max_bytes=1000, uri_of=origin.uri_of)
    assert Path(cache.fetch(origin.shards[1])).read_bytes() == b"\1" * 100
    assert len(names) == 2
    cache.close()


def test_error_damaged_each_time_names_the_shard_and_leaves_nothing(
    origin: Origin, monkeypatch: pytest.MonkeyPatch
) -> None:
    damage_on_the_way(monkeypatch, times=3)
    cache = ShardCache("", max_bytes=1000, uri_of=origin.uri_of)
    shard = origin.shards[1]
    with pytest.raises(DatasetError, match=rf"shard .*{shard.sha256}: sha256 [0-9a-f]{{64}} after 3 fetches"):
        cache.fetch(shard)
    assert files(cache) == {}
    assert cache.held_bytes == 0
    assert Path(cache.fetch(shard)).read_bytes() == b"\1" * 100  # mended in the bucket: it can be had again
    cache.close()


def test_error_missing_shard_names_its_uri(origin: Origin) -> None:
    cache = ShardCache("", max_bytes=1000, uri_of=origin.uri_of)
    os.unlink(origin.uri_of(origin.shards[2]))
    with pytest.raises(StorageError, match=origin.shards[2].sha256):
        cache.fetch(origin.shards[2])
    assert cache.held_bytes == 0
    cache.close()


def test_law_close_removes_a_temporary_folder(origin: Origin) -> None:
    gone: list[str] = []
    cache = ShardCache("", max_bytes=1000, uri_of=origin.uri_of, on_evict=gone.append)
    cache.fetch(origin.shards[0])
    cache.close()
    assert not os.path.exists(cache.folder)
    assert gone == [origin.shards[0].sha256]


def lasting(origin: Origin, tmp_path: Path, max_bytes: int = 1000) -> ShardCache:
    return ShardCache(str(tmp_path / "cache"), max_bytes=max_bytes, uri_of=origin.uri_of)


def test_law_a_lasting_folder_serves_the_next_run(origin: Origin, tmp_path: Path, fetched: list[str]) -> None:
    cache = lasting(origin, tmp_path)
    cache.fetch(origin.shards[0])
    cache.close()
    again = lasting(origin, tmp_path)
    assert again.held_bytes == 100
    assert Path(again.fetch(origin.shards[0])).read_bytes() == b"\0" * 100
    assert len(fetched) == 1
    again.close()


@pytest.mark.parametrize("harm", [lambda data: data[:-1], lambda data: data[:-1] + b"!", lambda data: b""])
def test_law_what_an_earlier_run_left_is_checked(
    origin: Origin, tmp_path: Path, fetched: list[str], harm: Callable[[bytes], bytes]
) -> None:
    cache = lasting(origin, tmp_path)
    path = Path(cache.fetch(origin.shards[0]))
    cache.close()
    path.write_bytes(harm(path.read_bytes()))
    (path.parent / f".x{storage.PARTIAL}").write_bytes(b"half")
    again = lasting(origin, tmp_path)
    assert Path(again.fetch(origin.shards[0])).read_bytes() == b"\0" * 100
    assert len(fetched) == 2
    assert again.held_bytes == 100
    assert not (path.parent / f".x{storage.PARTIAL}").exists()
    again.close()


def test_law_a_lasting_folder_is_cut_to_a_smaller_bound(origin: Origin, tmp_path: Path) -> None:
    cache = lasting(origin, tmp_path)
    for shard in origin.shards[:4]:
        cache.fetch(shard)
    cache.close()
    again = lasting(origin, tmp_path, max_bytes=250)
    assert again.held_bytes == sum(files(again).values()) == 200
    again.close()


def test_law_two_caches_at_once_do_not_share_a_folder(origin: Origin, tmp_path: Path) -> None:
    one, two = lasting(origin, tmp_path), lasting(origin, tmp_path)
    assert one.folder != two.folder
    one.close()
    three = lasting(origin, tmp_path)
    assert three.folder == one.folder
    with open(os.path.join(three.folder, "lock")) as lock, pytest.raises(BlockingIOError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    two.close()
    three.close()


def test_error_cache_dir_that_is_a_file(origin: Origin, tmp_path: Path) -> None:
    (tmp_path / "cache").write_bytes(b"")
    with pytest.raises(StorageError, match=r"loader\.cache_dir=.*cache: "):
        lasting(origin, tmp_path)


# ---------------------------------------------------------------- what others do to the folder


@pytest.mark.parametrize("harm", [os.unlink, lambda path: os.truncate(path, 7)])
def test_law_what_someone_tidied_up_is_fetched_again(
    origin: Origin, fetched: list[str], harm: Callable[[str], None]
) -> None:
    gone: list[str] = []
    cache = ShardCache("", max_bytes=300, uri_of=origin.uri_of, on_evict=gone.append)
    shard = origin.shards[0]
    harm(cache.fetch(shard))
    assert Path(cache.fetch(shard)).read_bytes() == b"\0" * 100
    assert len(fetched) == 2 and gone == [shard.sha256]  # a reader must map it anew
    os.unlink(cache.path(shard))
    for other in origin.shards[1:4]:
        cache.fetch(other)  # evicting what is gone is no error
    assert cache.held_bytes == 300
    cache.close()


def test_law_a_killed_process_leaves_its_folder_to_the_next_to_remove(
    origin: Origin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    living = ShardCache("", max_bytes=300, uri_of=origin.uri_of)
    living.fetch(origin.shards[0])
    pid = os.fork()
    if pid == 0:
        killed = ShardCache("", max_bytes=300, uri_of=origin.uri_of)
        killed.fetch(origin.shards[1])
        os.kill(os.getpid(), signal.SIGKILL)
    assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL
    assert len(list(tmp_path.glob("infd-shards-*"))) == 2
    third = ShardCache("", max_bytes=300, uri_of=origin.uri_of)
    assert sorted(map(str, tmp_path.glob("infd-shards-*"))) == sorted([living.folder, third.folder])
    assert os.path.exists(living.path(origin.shards[0]))
    third.close()
    living.close()
    assert list(tmp_path.glob("infd-shards-*")) == []


def test_law_stopping_ends_a_fetch_from_a_store_that_is_gone(origin: Origin, monkeypatch: pytest.MonkeyPatch) -> None:
    began = threading.Event()

    def gone(uri: str, path: str) -> None:
        def ask() -> None:
            began.set()
            raise ConnectionError

        s3.retrying(uri, ask)

    monkeypatch.setattr(storage, "get_file", gone)
    monkeypatch.setattr(s3, "_answered", {s3.endpoint()})
    cache = ShardCache("", max_bytes=1000, uri_of=origin.uri_of)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(cache.fetch, origin.shards[0])
        assert began.wait(30)
        cache.stop()
        with pytest.raises(StorageError, match="no sound answer"):
            asked.result(timeout=5)
    cache.close()
    cache.close()


@pytest.mark.parametrize(("room", "least", "most"), [(1.0, 1.0, 1.3), (0.5, 5.0, 100.0)])
def test_law_an_epoch_fetches_a_shard_about_once_where_there_is_room(
    tmp_path: Path, fetched: list[str], monkeypatch: pytest.MonkeyPatch, room: float, least: float, most: float
) -> None:
    """Room for what the slots read at the same time is enough, with fetching ahead too; half of it is by far too little."""
    monkeypatch.setattr(os, "fsync", lambda _: None)
    slots, rows = range(8), 20
    origin = Origin(tmp_path, [100 + i for i in range(160)])
    n = rows * len(origin.shards)
    sides = np.full(n, 64, np.int32)
    order = Order(Manifest(shards=origin.shards, first_row=np.arange(0, n + 1, rows), short_side=sides, long_side=sides,
                           split=np.zeros(n, np.uint8), group=np.zeros(n, np.int32), group_names=[""]),
                  CropConfig(patch_px=16, lowres_px=16, r_min=16, r_max=64), batch=len(slots), seed=0)
    max_bytes = int(room * order.shards_at_once(slots) * 260)
    cache = ShardCache("", max_bytes=max_bytes, uri_of=origin.uri_of)
    ahead = FetchAhead(order, cache, origin.shards, slots=slots, start_step=0, budget_bytes=max_bytes // 2)
    for step in range(order.epoch_steps):
        ahead.reached(step)
        for shard in order.shards(step, slots):
            with cache.use(origin.shards[shard]):
                pass
    ahead.close()
    cache.close()
    assert least <= len(fetched) / len(origin.shards) <= most
    assert len(set(fetched)) == len(origin.shards)
