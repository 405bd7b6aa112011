"""Fetches the shards that the next steps need before they need them."""

import logging
import threading
from collections import Counter, deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from infd.data.cache import ShardCache
from infd.data.order import Order
from infd.data.snapshot import ShardEntry
from infd.errors import InfdError

logger = logging.getLogger(__name__)

FETCH_THREADS = 4
"""Shards fetched at the same time."""
MAX_AHEAD_STEPS = 4096
"""How far the walk may be ahead of training, however little it has to fetch; never more than an epoch."""


class FetchAhead:
    """Walks the order ahead of training and has `cache` fetch each shard that comes up.

    The shards of the steps between training and the walk hold at most `budget_bytes` (or those of a single step).
    """

    def __init__(
        self,
        order: Order,
        cache: ShardCache,
        shards: Sequence[ShardEntry],
        *,
        slots: range,
        start_step: int,
        budget_bytes: int,
    ) -> None:
        self._order = order
        self._cache = cache
        self._shards = shards
        self._slots = slots
        self._budget_bytes = budget_bytes
        self._max_steps = min(MAX_AHEAD_STEPS, order.epoch_steps)
        self._step = start_step  # where training is
        self._walked: deque[list[int]] = deque()  # shards of the steps from self._first on
        self._first = start_step
        self._needed: Counter[int] = Counter()  # shard → how many of the walked steps need it
        self._needed_bytes = 0
        self._changed = threading.Condition()
        self._closed = False
        self._pool = ThreadPoolExecutor(FETCH_THREADS, thread_name_prefix="infd-fetch")
        self._thread = threading.Thread(target=self._walk, name="infd-fetch-ahead", daemon=True)
        self._thread.start()

    def reached(self, step: int) -> None:
        """Training takes the batch of `step`: what came before is no longer needed."""
        with self._changed:
            self._step = step
            self._changed.notify()

    def close(self) -> None:
        """End the threads; fetches under way are waited for."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()  # an interrupt within notify() leaves a waiter behind that would take this one
        self._thread.join()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _walk(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._may_walk())
                if self._closed:
                    return
                step = self._first + len(self._walked)
            shards = self._order.shards(step, self._slots)
            for shard in self._add(shards):
                self._pool.submit(self._fetch, shard)

    def _may_walk(self) -> bool:
        """Forget the steps that training has left behind; is there room for one more?"""
        while self._walked and self._first < self._step:
            for shard in self._walked.popleft():
                self._needed[shard] -= 1
                if not self._needed[shard]:
                    del self._needed[shard]
                    self._needed_bytes -= self._shards[shard].bytes
            self._first += 1
        if not self._walked:
            self._first = max(self._first, self._step)
        near = len(self._walked) < self._max_steps and self._needed_bytes <= self._budget_bytes
        return near or not self._walked

    def _add(self, shards: list[int]) -> list[int]:
        """Note the shards of one more step; those that no step before it needed."""
        new = [shard for shard in shards if shard not in self._needed]
        self._walked.append(shards)
        self._needed.update(shards)
        self._needed_bytes += sum(self._shards[shard].bytes for shard in new)
        return new

    def _fetch(self, shard: int) -> None:
        try:
            self._cache.fetch(self._shards[shard])
        except InfdError as error:
            logger.warning("fetching ahead: %s (fetched again when a sample needs it)", error)
