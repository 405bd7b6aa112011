"""Laws of the folder of shards that all processes of a machine share."""

import hashlib
import os
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest

from infd import storage
from infd.data import shared_cache
from infd.errors import ConfigError, DatasetError, StorageError

DATA = [bytes([i]) * 100 for i in range(6)]
NAMES = [hashlib.sha256(data).hexdigest() for data in DATA]


@pytest.fixture
def origin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Six shards of 100 bytes in a folder that stands for a bucket, and a cache for three of them."""
    monkeypatch.setenv("INFD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("INFD_CACHE_BYTES", "300")
    folder = tmp_path / "origin"
    folder.mkdir()
    for name, data in zip(NAMES, DATA, strict=True):
        (folder / name).write_bytes(data)
    return folder


def fetch(origin: Path, i: int) -> str:
    return shared_cache.fetch(str(origin / NAMES[i]), NAMES[i], 100)


def aged(path: str, seconds: float) -> str:
    """As if it had been used that long ago."""
    stat = os.stat(path)
    os.utime(path, ns=(stat.st_atime_ns - int(seconds * 1e9), stat.st_mtime_ns))
    return path


def held() -> set[int]:
    return {NAMES.index(name.removesuffix(".arrow")) for name in os.listdir(shared_cache.folder())}


def test_law_the_least_recently_used_goes_and_the_bound_holds(origin: Path) -> None:
    for i, age in enumerate((400, 300, 200)):
        aged(fetch(origin, i), age)
    fetch(origin, 0)  # used again
    for i, left in ((3, {0, 2, 3}), (4, {0, 3, 4})):
        assert Path(fetch(origin, i)).read_bytes() == DATA[i]
        assert held() == left


def test_law_what_is_in_use_now_stays(origin: Path) -> None:
    for i in range(5):
        fetch(origin, i)
    assert held() == {0, 1, 2, 3, 4}
    for i in range(5):
        aged(os.path.join(shared_cache.folder(), f"{NAMES[i]}.arrow"), shared_cache.GRACE_S + 9 - i)
    fetch(origin, 5)
    assert held() == {3, 4, 5}


@pytest.mark.parametrize("harm", [lambda p: os.truncate(p, 50), lambda p: Path(p).write_bytes(bytes(99) + b"!"), os.unlink])
def test_law_a_damaged_copy_is_fetched_again(origin: Path, harm) -> None:
    harm(fetch(origin, 1))
    assert Path(fetch(origin, 1)).read_bytes() == DATA[1]


def test_error_a_damaged_object_names_shard_and_uri(origin: Path) -> None:
    (origin / NAMES[2]).write_bytes(bytes(100))
    with pytest.raises(DatasetError, match=rf"shard {origin}/{NAMES[2]}: damaged after 3 fetches \(shard {NAMES[2]}"):
        fetch(origin, 2)
    assert held() == set()
    (origin / NAMES[2]).unlink()
    with pytest.raises(StorageError, match=NAMES[2]):
        fetch(origin, 2)


def test_law_unfinished_files_of_killed_processes_go(origin: Path) -> None:
    fetch(origin, 0)
    for name, age in (("old", 2 * shared_cache.STALE_S), ("new", 0)):
        path = Path(shared_cache.folder(), f".{name}{storage.PARTIAL}")
        path.write_bytes(b"half")
        os.utime(path, (time.time() - age,) * 2)
    fetch(origin, 1)
    left = [name for name in os.listdir(shared_cache.folder()) if name.endswith(storage.PARTIAL)]
    assert left == [f".new{storage.PARTIAL}"]


def walk(origin: Path, seed: int) -> bool:
    """Fetch in a sequence of one's own, and read; True if all bytes were right."""
    shared_cache.GRACE_S = 0.3
    return all(Path(fetch(origin, i := (seed * 7 + step * 5) % 6)).read_bytes() == DATA[i] for step in range(60))


def test_law_processes_share_the_folder_and_its_bound(origin: Path) -> None:
    with ProcessPoolExecutor(3, mp_context=get_context("fork")) as pool:
        assert list(pool.map(walk, [origin] * 3, range(3))) == [True] * 3
    for name in os.listdir(shared_cache.folder()):
        aged(os.path.join(shared_cache.folder(), name), 100)
    shared_cache.evict()
    assert len(held()) == 3


def test_error_a_bound_that_is_no_number(origin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INFD_CACHE_BYTES", "20GB")
    with pytest.raises(ConfigError, match="INFD_CACHE_BYTES=20GB: must be a number of bytes"):
        fetch(origin, 0)
