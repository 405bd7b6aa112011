"""Batches in order: threads read ahead of the training step; shards of a bucket come through a local cache.

`Loader` gives crops of photographs; `latents.LatentLoader` gives latents in the same way.
Legend: B samples of a batch, L side of lowres, P side of a patch. All pixels are uint8; coord, cell and the float
conversion are made on the device.
"""

import logging
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Generic, Protocol, Self, TypeVar

import numpy as np
import torch

from infd import storage
from infd.config import LoaderConfig, require
from infd.data.ahead import FetchAhead
from infd.data.cache import ShardCache
from infd.data.order import Order, Sample
from infd.data.snapshot import Dataset, Manifest, ShardEntry
from infd.errors import DatasetError, InfdError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Batch:
    """One step's samples, in the order of their slots."""

    step: int
    g: torch.Tensor
    """(B,) int64: global sample numbers."""
    lowres: torch.Tensor
    """(B, 3, L, L) uint8: the whole views."""
    patch: torch.Tensor
    """(B, 3, P, P) uint8: the patches at side r."""
    r: torch.Tensor
    """(B,) int64: sides of the whole views, pixels."""
    y: torch.Tensor
    """(B,) int64: first row of each patch, pixels of the view at side r."""
    x: torch.Tensor
    """(B,) int64: first column."""
    rows: list[int]
    """Photos, in manifest order."""


class Shards(Protocol):
    """What a loader reads: files of rows behind a manifest."""

    uri: str
    fetch: Callable[[ShardEntry], str]

    @property
    def manifest(self) -> Manifest: ...

    def copy(self) -> Self: ...

    def shard_uri(self, entry: ShardEntry) -> str: ...

    def forget(self, sha256: str) -> None: ...


class Stepped(Protocol):
    @property
    def step(self) -> int: ...


ShardsT = TypeVar("ShardsT", bound=Shards)
BatchT = TypeVar("BatchT", bound=Stepped)


class BatchReader(ABC, Generic[ShardsT, BatchT]):
    """Iterates over the batches of `slots` from `start_step` on, one a step, without end. Close it, or use `with`.

    Raises what reading raises, at the step that needs the sample, as DatasetError naming shard and row; it is closed
    then. Law: the batches do not depend on `config`, nor on how the slots are shared between loaders, nor on where a run
    was cut.
    """

    def __init__(
        self,
        dataset: ShardsT,
        order: Order,
        config: LoaderConfig,
        *,
        slots: range,
        start_step: int = 0,
        pin_memory: bool = False,
    ) -> None:
        inside = 0 <= slots.start < slots.stop <= order.batch_size and slots.step == 1
        require(inside, "slots", slots, f"must be a range within 0 to batch={order.batch_size}")
        self.dataset = dataset
        self.order = order
        self.slots = slots
        self._config = config
        self._pin_memory = pin_memory
        self._cache: ShardCache | None = None
        self._ahead: FetchAhead | None = None
        if storage.is_remote(dataset.uri):
            self.dataset = dataset = dataset.copy()  # the caller's stays as it is
            self._cache = ShardCache(
                config.cache_dir, max_bytes=config.cache_bytes, uri_of=dataset.shard_uri, on_evict=dataset.forget)
            dataset.fetch = self._cache.fetch
            warn_of_small_cache(dataset.manifest, order, slots, config.cache_bytes)
        self._pool = ThreadPoolExecutor(config.threads, thread_name_prefix="infd-loader")
        self._pending: deque[tuple[BatchT, list[Future[None]]]] = deque()
        self._next_step = start_step
        self._closed = False
        self._lock = threading.Lock()  # of the figures below
        self._batches = 0
        self._decode_s = 0.0
        self._fetch_wait_s = 0.0
        self._wait_s = 0.0
        self._total_s = 0.0
        self._since_s: float | None = None

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> BatchT:
        if self._closed:
            raise ValueError("loader: it is closed; make a new one with start_step")
        called_s = time.perf_counter()
        try:
            if self._cache is not None and self._ahead is None:  # not before: a loader may serve `read` alone
                self._ahead = FetchAhead(
                    self.order, self._cache, self.dataset.manifest.shards, slots=self.slots,
                    start_step=self._next_step, budget_bytes=self._config.cache_bytes // 2)
            while len(self._pending) < self._config.prefetch_batches:
                self._pending.append(self._begin(self.order.batch(self._next_step, self.slots)))
                self._next_step += 1
            batch, parts = self._pending.popleft()
            if self._ahead is not None:
                self._ahead.reached(batch.step)
            for part in parts:
                part.result()
        except BaseException:
            self.close()
            raise
        self._account(called_s)
        return batch

    def read(self, samples: Sequence[Sample]) -> BatchT:
        """Those samples, at once: for validation, or to look at a batch again. Its `step` is that of the first g."""
        if self._closed:
            raise ValueError("loader: it is closed; make a new one")
        batch, parts = self._begin(samples)
        wait(parts)
        for part in parts:
            part.result()
        return batch

    def stats(self) -> dict[str, float]:
        """Figures since the start.

        wait_fraction: share of the time in which the caller waited for a batch; decode_s: seconds that all threads spent
        on reading and resizing; fetch_wait_s: that they waited for shards; hit_rate: share of samples whose shard was at
        hand (1 for a local dataset).
        """
        with self._lock:
            decode_s, fetch_wait_s = self._decode_s, self._fetch_wait_s
        hits, misses = (self._cache.hits, self._cache.misses) if self._cache is not None else (0, 0)
        return {
            "batches": float(self._batches),
            "samples": float(self._batches * len(self.slots)),
            "wait_s": self._wait_s,
            "total_s": self._total_s,
            "wait_fraction": self._wait_s / self._total_s if self._total_s else 0.0,
            "decode_s": decode_s,
            "fetch_wait_s": fetch_wait_s,
            "hit_rate": hits / (hits + misses) if hits + misses else 1.0,
            "fetched_bytes": float(self._cache.fetched_bytes if self._cache is not None else 0),
        }

    def close(self) -> None:
        """End the threads and remove the temporary cache; what is being read is waited for, a store that is gone is not.
        Twice does nothing; where an interrupt cut it short, again goes on."""
        self._closed = True
        with ExitStack() as steps:  # each of them, whatever the one before it raised
            if self._cache is not None:
                self._cache.stop()
                steps.callback(self._cache.close)
            if self._ahead is not None:
                steps.callback(self._ahead.close)
            steps.callback(self._pending.clear)
            self._pool.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @abstractmethod
    def _made(self, samples: Sequence[Sample]) -> BatchT:
        """A batch of these samples whose numbers are known and whose tensors are to be filled."""

    @abstractmethod
    def _read_into(self, batch: BatchT, at: int, sample: Sample, where: str) -> None:
        """Read one sample into its place; its shard is at hand. What goes wrong is a DatasetError that begins with `where`."""

    def _begin(self, samples: Sequence[Sample]) -> tuple[BatchT, list[Future[None]]]:
        """A batch, and the work that fills it."""
        batch = self._made(samples)
        return batch, [self._pool.submit(self._fill, batch, i, sample) for i, sample in enumerate(samples)]

    def _empty(self, shape: tuple[int, ...], dtype: torch.dtype = torch.uint8) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, pin_memory=self._pin_memory)

    def _fill(self, batch: BatchT, at: int, sample: Sample) -> None:
        """Read one sample into its place, its shard fetched before."""
        began_s = time.perf_counter()
        shard, inside = self.dataset.manifest.locate(sample.row)
        entry = self.dataset.manifest.shards[shard]
        where = f"sample g={sample.g}: shard {entry.sha256}.arrow row {inside}"
        with ExitStack() as held:
            try:
                if self._cache is not None:
                    held.enter_context(self._cache.use(entry))
            except (InfdError, OSError) as error:
                raise DatasetError(f"{where}: {error}") from error
            at_hand_s = time.perf_counter()
            self._read_into(batch, at, sample, where)
        with self._lock:
            self._fetch_wait_s += at_hand_s - began_s
            self._decode_s += time.perf_counter() - at_hand_s

    def _account(self, called_s: float) -> None:
        now_s = time.perf_counter()
        began_s = called_s if self._since_s is None else self._since_s
        self._batches += 1
        self._wait_s += now_s - called_s
        self._total_s += now_s - began_s
        self._since_s = now_s


class Loader(BatchReader[Dataset, Batch]):
    """Crops of photographs, a batch a step."""

    def _made(self, samples: Sequence[Sample]) -> Batch:
        crop = self.order.crop
        column: dict[str, Any] = {
            name: torch.tensor([getattr(s, name) for s in samples], dtype=torch.int64) for name in "gryx"}
        return Batch(
            step=samples[0].g // self.order.batch_size if samples else 0,
            lowres=self._empty((len(samples), 3, crop.lowres_px, crop.lowres_px)),
            patch=self._empty((len(samples), 3, crop.patch_px, crop.patch_px)),
            rows=[sample.row for sample in samples],
            **column,
        )

    def _read_into(self, batch: Batch, at: int, sample: Sample, where: str) -> None:
        lowres, patch = self._read(sample, where)
        batch.lowres[at] = torch.from_numpy(lowres).permute(2, 0, 1)
        batch.patch[at] = torch.from_numpy(patch).permute(2, 0, 1)

    def _read(self, sample: Sample, where: str) -> tuple[np.ndarray, np.ndarray]:
        """lowres (L, L, 3) and patch (P, P, 3); what goes wrong is a DatasetError that says where."""
        dataset, crop, row = self.dataset, self.order.crop, sample.row
        try:
            view = "center" if crop.view == "center" else dataset.view(row, sample.view_offset)
            lowres = dataset.lowres(row, size=crop.lowres_px, view=view)
            x = sample.r - crop.patch_px - sample.x if sample.flip else sample.x
            patch = dataset.patch(row, r=sample.r, y=sample.y, x=x, size=crop.patch_px, view=view)
        except Exception as error:
            raise DatasetError(f"{where} ({self._photo_uri(row)}): {error}") from error
        return (lowres[:, ::-1].copy(), patch[:, ::-1].copy()) if sample.flip else (lowres, patch)

    def _photo_uri(self, row: int) -> str:
        """The source of a photo, or why it cannot be told."""
        try:
            return str(self.dataset[row]["uri"])
        except (InfdError, OSError) as error:
            return f"uri not readable: {type(error).__name__}"


def warn_of_small_cache(manifest: Manifest, order: Order, slots: range, cache_bytes: int) -> None:
    """Say so where the shards that `slots` read at the same time have no room: some ten fetches of each an epoch."""
    sizes = [shard.bytes for shard in manifest.shards]
    count = min(order.shards_at_once(slots), len(sizes))
    if (needed := min(count * max(sizes), sum(sizes))) > cache_bytes:
        logger.warning("loader.cache_bytes=%d: %d slots read from up to %d shards at the same time, %d bytes; shards will be "
                       "fetched again and again; set loader.cache_bytes=%d, or share the slots among more workers",
                       cache_bytes, len(slots), count, needed, needed)
