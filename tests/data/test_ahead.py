"""Laws of fetching ahead: each shard before its step, never more than the budget, in the order of need."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from infd.config import CropConfig
from infd.data import ahead
from infd.data.ahead import FetchAhead
from infd.data.order import Order
from infd.data.snapshot import Manifest, ShardEntry
from infd.errors import StorageError

SLOTS = range(2)
CROP = CropConfig(patch_px=16, lowres_px=16, r_min=16, r_max=64)
SIDES = np.full(400, 64, np.int32)
MANIFEST = Manifest(
    shards=[ShardEntry(sha256=f"{i:064x}", bytes=100, rows=10) for i in range(40)],
    first_row=np.arange(41, dtype=np.int64) * 10, short_side=SIDES, long_side=SIDES,
    split=np.zeros(400, np.uint8), group=np.zeros(400, np.int32), group_names=[""])
ORDER = Order(MANIFEST, CROP, batch=2, seed=0)  # 200 steps an epoch, 4 to 5 shards of 100 bytes a window and slot


class Fetches:
    """Stands for a cache: notes the shards asked for, in order, and lets a test wait for them."""

    def __init__(self, error: Exception | None = None) -> None:
        self.asked: list[int] = []
        self.error = error
        self.changed = threading.Condition()

    def fetch(self, shard: ShardEntry) -> str:
        with self.changed:
            self.asked.append(int(shard.sha256, 16))
            self.changed.notify_all()
        if self.error is not None:
            raise self.error
        return ""

    def wait_for(self, shards: set[int]) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: shards <= set(self.asked), timeout=30)


def needed(steps: range) -> set[int]:
    return {shard for step in steps for shard in ORDER.shards(step, SLOTS)}


@contextmanager
def walking(cache: Fetches, *, budget: int, start: int = 0) -> Iterator[FetchAhead]:
    """A FetchAhead that is closed at the end; no thread of it may live on."""
    walk = FetchAhead(
        ORDER, cache, MANIFEST.shards, slots=SLOTS, start_step=start, budget_bytes=budget)  # pyright: ignore
    try:
        yield walk
    finally:
        walk.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("infd-fetch")]


def steps_within(budget: int, start: int) -> range:
    """The steps from `start` on whose shards exceed the budget for the first time at the last of them."""
    stop = start + 1
    while 100 * len(needed(range(start, stop))) <= budget:
        stop += 1
    return range(start, stop)


@pytest.mark.parametrize("budget", [0, 900, 1500])
def test_law_fetches_the_next_steps_up_to_the_budget(budget: int) -> None:
    cache = Fetches()
    with walking(cache, budget=budget) as walk:
        for step in (0, 1, 30, 31, 90):
            walk.reached(step)
            cache.wait_for(needed(range(step, step + 1)) | needed(steps_within(budget, step)))
    assert set(cache.asked) == set().union(*(needed(steps_within(budget, step)) for step in (0, 1, 30, 31, 90)))


def test_law_shards_come_in_the_order_of_need(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ahead, "FETCH_THREADS", 1)
    cache = Fetches()
    with walking(cache, budget=2000):
        cache.wait_for(needed(steps_within(2000, 0)))
    first_need = [next(step for step in range(200) if shard in ORDER.shards(step, SLOTS)) for shard in cache.asked]
    assert first_need == sorted(first_need)
    assert len(cache.asked) == len(set(cache.asked))


def test_law_a_walk_stays_within_an_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    walked: list[int] = []
    changed, real = threading.Condition(), Order.shards

    def shards(self: Order, step: int, slots: range) -> list[int]:
        with changed:
            walked.append(step)
            changed.notify_all()
        return real(self, step, slots)

    monkeypatch.setattr(Order, "shards", shards)
    with walking(Fetches(), budget=10**9, start=150) as walk:
        for step in (150, 151, 160):
            walk.reached(step)
            with changed:
                assert changed.wait_for(lambda step=step: walked[-1:] == [step + 199], timeout=30)
    assert walked == list(range(150, 360))


def test_law_training_that_overtakes_is_followed() -> None:
    cache = Fetches()
    with walking(cache, budget=0) as walk:
        cache.wait_for(needed(range(1)))
        walk.reached(120)
        cache.wait_for(needed(range(120, 121)))


def test_law_a_failed_fetch_is_logged_and_the_walk_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    cache = Fetches(StorageError("s3://b/x: gone"))
    with walking(cache, budget=900) as walk:
        cache.wait_for(needed(steps_within(900, 0)))
        walk.reached(100)
        cache.wait_for(needed(steps_within(900, 100)))
    assert "fetching ahead: s3://b/x: gone" in caplog.text


def test_law_an_interrupt_within_a_notify_does_not_keep_close_waiting():
    """Ctrl+C between the two halves of Condition.notify leaves a waiter that was woken already in the queue."""
    cache = Fetches()
    walk = FetchAhead(ORDER, cache, MANIFEST.shards, slots=SLOTS, start_step=0, budget_bytes=1)  # pyright: ignore
    cache.wait_for(needed(range(1)))
    woken = threading.Lock()
    woken.acquire()
    with walk._changed:
        assert walk._changed.wait_for(lambda: walk._changed._waiters, timeout=30)                # pyright: ignore
        walk._changed._waiters.appendleft(woken)                                                 # pyright: ignore
    closing = threading.Thread(target=walk.close, daemon=True)
    closing.start()
    closing.join(30)
    assert not closing.is_alive()
