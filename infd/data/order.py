"""Which crop of which photo is sample g: arithmetic from (manifest, crop, batch, seed), without state or I/O.

The global batch has B slots; g = step * B + slot, and step counts from 0. Each slot is a stream of its own. Every
epoch permutes the shards and the rows inside each, joins them to one walk over the N rows of the split, and cuts
the walk into B equal ranges of L = ceil(N / B) rows; the end wraps to the beginning where B does not divide N. A slot
goes through its range in windows of a few shards, rows shuffled inside a window. So the sequence of global batches
depends neither on how many workers share the slots nor on where a run was cut, and a worker with neighbouring slots
reads its own part of the shards only.

Randomness is counter-based: Philox's raw 64-bit words, which no release of NumPy changes, keyed by (seed, purpose)
and counted by g or by the epoch.

Shapes: B slots, L steps an epoch, N rows of the split.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from math import ceil
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from infd.config import CropConfig, require
from infd.errors import ConfigError, DatasetError

if TYPE_CHECKING:
    from infd.data.snapshot import Manifest

WINDOW_SHARDS = 4
"""Shards (or parts of them) whose rows a slot shuffles together, and so reads from at the same time."""
SPLITS = {"train": 0, "val": 1}
BLOCK = 64
"""Positions of a slot in which a balanced group has its exact share."""
KEPT_EPOCHS = 3
"""Epochs of a walk held in memory: the epoch being read, and those that prefetching has reached."""

# Purposes of a random stream: the second word of Philox's key. Never renumber: they are part of the order.
CROPS, SHARDS, ROWS, WINDOWS, VALIDATION_SHARDS, VALIDATION_CROPS, BALANCE, BALANCED_SEED, FLIPS = range(9)


class Sample(NamedTuple):
    """One crop: the square view of photo `row` at `view_offset` along its long side, resampled to r x r pixels,
    and of that the patch whose top left pixel is (y, x)."""

    g: int
    """Global sample number."""
    row: int
    """Photo, in manifest order."""
    view_offset: float
    """Place of the view along the long side, 0 to 1; 0.5 is the centre."""
    r: int
    """Side of the whole view, pixels; at most the photo's short side."""
    y: int
    x: int
    flip: bool = False
    """The view is mirrored, left to right, before the patch is cut: x counts from the left of the mirrored one."""


class Order:
    """Sample g of one split of a dataset, for every g >= 0 in any sequence.

    Raises DatasetError if the split has no photos, ConfigError if one of them is smaller than crop.r_min
    or crop.lowres_px.
    Law: `batch` of all slots at a step equals its parts over any cut of the slots, whatever was asked before.
    Law: each epoch holds every row once, and at most B - 1 of them twice (with N < B: N / B times, rounded up or down).
    Memory: a few arrays of N numbers. May be used from several threads.
    """

    def __init__(
        self,
        manifest: Manifest,
        crop: CropConfig,
        *,
        batch: int,
        seed: int,
        split: Literal["train", "val"] = "train",
    ) -> None:
        require(batch >= 1, "batch", batch, "must be at least 1")
        self.crop = crop
        self.batch_size = batch
        self.seed = seed
        self.photo_rows = split_rows(manifest, crop, split=split)
        """(N,) rows of the split, rising."""
        if len(self.photo_rows) == 0:
            raise DatasetError(
                f"dataset: {len(manifest.split)} photos, none in split {split}; at least 1 is needed; "
                f"ingest more photos or change ingest's val_fraction")
        self.first_row = np.asarray(manifest.first_row)
        self.short_side = np.asarray(manifest.short_side)
        self.epoch_steps = -(-len(self.photo_rows) // batch)
        """L: steps of an epoch; of a balanced order, steps that show as many samples as there are photos."""
        self.walks = [Walk(rows, shard_index(self.first_row, rows), batch=batch, seed=walk_seed)
                      for rows, walk_seed in self._parts(manifest)]

    def sample(self, g: int) -> Sample:
        """Sample g. Costs microseconds, once an epoch the time to sort N numbers."""
        step, slot = divmod(g, self.batch_size)
        row = int(self.rows(step, range(slot, slot + 1))[0])
        return draw_crop(self.crop, g=g, row=row, short_side=int(self.short_side[row]), step=step, seed=self.seed)

    def batch(self, step: int, slots: range | None = None) -> list[Sample]:
        """The samples of `slots` (all of them if None) at `step`, which counts from 0."""
        slots = range(self.batch_size) if slots is None else slots
        return [self.sample(step * self.batch_size + slot) for slot in slots]

    def rows(self, step: int, slots: range) -> np.ndarray:
        """(len(slots),) the photos that `slots` show at `step`, without their crops."""
        if len(self.walks) == 1:
            return self.walks[0].rows(step, slots)
        found = []
        for slot in slots:
            walk, position = self._balanced(step, slot)
            found.append(self.walks[walk].rows(position, range(slot, slot + 1))[0])
        return np.array(found, np.int32)

    def shards(self, step: int, slots: range) -> list[int]:
        """Shards that `slots` read at `step`, rising, each once."""
        return np.unique(shard_index(self.first_row, self.rows(step, slots))).tolist()

    def shards_at_once(self, slots: range) -> int:
        """Shards, at most, among which `slots` choose at the same time: a cache of fewer fetches most of them anew at every
        turn. No more than the slots go through in an epoch."""
        share = len(slots) / self.batch_size
        return sum(min(WINDOW_SHARDS * len(slots), ceil(share * len(np.unique(walk.photo_shards))) + 1) for walk in self.walks)

    def _parts(self, manifest: Manifest) -> list[tuple[np.ndarray, int]]:
        """(rows, seed) of each walk: one of all photos, or one of the balanced group and one of the others."""
        name = self.crop.balance_group
        if not name:
            return [(self.photo_rows, self.seed)]
        if name not in manifest.group_names:
            raise ConfigError(f"crop.balance_group={name}: the dataset has the groups {list(manifest.group_names)}; "
                              "name one of them, or ingest with --group")
        inside = np.asarray(manifest.group)[self.photo_rows] == list(manifest.group_names).index(name)
        if inside.all() or not inside.any():
            raise ConfigError(f"crop.balance_group={name}: {int(inside.sum())} of {len(inside)} photos are of that group; "
                              "a balance needs some of it and some others")
        other = int(random_words(1, seed=self.seed, purpose=BALANCED_SEED, index=0)[0])
        return [(self.photo_rows[inside], self.seed), (self.photo_rows[~inside], other)]

    def _balanced(self, step: int, slot: int) -> tuple[int, int]:
        """(walk, position in it) of a slot's sample at `step`: 0 is the group's walk, 1 that of the others.

        In each block of BLOCK steps exactly round(BLOCK p) places, shuffled by the block's key, are the group's; so how
        many came before is arithmetic.
        """
        block, at = divmod(step, BLOCK)
        share = round(BLOCK * self.crop.balance_p)
        keys = random_words(BLOCK, seed=self.seed, purpose=BALANCE, index=block * self.batch_size + slot)
        places = np.argsort(keys, kind="stable")[:share]
        before = int(np.count_nonzero(places < at))
        if at in places:
            return 0, block * share + before
        return 1, block * (BLOCK - share) + at - before


class Walk:
    """The endless walk of each slot through some photos, epoch after epoch, each a permutation of its own."""

    def __init__(self, photo_rows: np.ndarray, photo_shards: np.ndarray, *, batch: int, seed: int) -> None:
        self.photo_rows, self.photo_shards, self.batch, self.seed = photo_rows, photo_shards, batch, seed
        self.steps = -(-len(photo_rows) // batch)
        self._epochs: OrderedDict[int, np.ndarray] = OrderedDict()
        self._lock = threading.Lock()

    def rows(self, position: int, slots: range) -> np.ndarray:
        """(len(slots),) the photos of `slots` at a position of their walks."""
        epoch, at = divmod(position, self.steps)
        return self._epoch(epoch)[slots.start : slots.stop : slots.step, at]

    def _epoch(self, epoch: int) -> np.ndarray:
        with self._lock:
            if epoch not in self._epochs:
                self._epochs[epoch] = epoch_rows(
                    self.photo_rows, self.photo_shards, batch=self.batch, seed=self.seed, epoch=epoch)
                while len(self._epochs) > KEPT_EPOCHS:
                    self._epochs.popitem(last=False)
            self._epochs.move_to_end(epoch)
            return self._epochs[epoch]


def slots_of(*, rank: int, world: int, batch: int) -> range:
    """Slots that worker `rank` of `world` owns: neighbours, so that it reads its own part of the shards."""
    if batch % world:
        raise ConfigError(f"loop.batch={batch}: must be divisible by the number of workers, {world}")
    return range(rank * batch // world, (rank + 1) * batch // world)


def validation_samples(manifest: Manifest, crop: CropConfig, count: int, seed: int) -> list[Sample]:
    """`count` fixed crops of the val split: its photos in turn, r uniform (p_whole and p_max do not apply).

    Empty if the split is. Photos come shard by shard, in a shuffled sequence of shards, so that a few samples do not
    fetch every shard. g counts from 0 and has nothing to do with training's.
    """
    rows = split_rows(manifest, crop, split="val")
    if len(rows) == 0:
        return []
    shards = shard_index(np.asarray(manifest.first_row), rows)
    keys = random_words(len(manifest.shards), seed=seed, purpose=VALIDATION_SHARDS, index=0)
    rows = rows[np.argsort(keys[shards], kind="stable")]
    chosen = rows[np.arange(count) % len(rows)].tolist()
    return [
        cut(crop, random_words(4, seed=seed, purpose=VALIDATION_CROPS, index=g).tolist(), g=g, row=row, r=None,
            side=int(manifest.short_side[row]))
        for g, row in enumerate(chosen)
    ]


def split_rows(manifest: Manifest, crop: CropConfig, *, split: Literal["train", "val"]) -> np.ndarray:
    """(N,) rows of a split, rising. Raises ConfigError if a photo of it is smaller than crop.r_min or lowres_px."""
    rows = np.flatnonzero(np.asarray(manifest.split) == SPLITS[split])
    sides = np.asarray(manifest.short_side)[rows]
    for field, least in (("crop.r_min", crop.r_min), ("crop.lowres_px", crop.lowres_px)):
        small = int(np.count_nonzero(sides < least))
        if small:
            raise ConfigError(
                f"{field}={least}: {small} of {len(rows)} {split} photos have a shorter short side, the smallest "
                f"{sides.min()} (row {rows[sides.argmin()]}); nothing is enlarged; lower {field}, or ingest with "
                f"min_side_px={least}")
    return rows


def shard_index(first_row: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Index of the shard that holds each of `rows`, given the first row of every shard."""
    return np.searchsorted(first_row, rows, side="right") - 1


def epoch_rows(rows: np.ndarray, shards: np.ndarray, *, batch: int, seed: int, epoch: int) -> np.ndarray:
    """(B, L) int32: the row that each slot shows at each step of `epoch`.

    rows: (N,) photos; shards: (N,) the shard of each.
    """
    n = len(rows)
    length = -(-n // batch)
    shard_keys = random_words(int(shards.max()) + 1, seed=seed, purpose=SHARDS, index=epoch)
    row_keys = random_words(n, seed=seed, purpose=ROWS, index=epoch)
    walk = np.lexsort((row_keys, shard_keys[shards]))  # shard by shard, both shuffled
    walk = walk[np.arange(batch * length) % n].reshape(batch, length)
    # Windows: every WINDOW_SHARDS-th time that a slot comes to a new shard, a new window begins.
    shard = shards[walk]
    window = np.cumsum(np.diff(shard, axis=1, prepend=shard[:, :1]) != 0, axis=1) // WINDOW_SHARDS
    window_keys = random_words(batch * length, seed=seed, purpose=WINDOWS, index=epoch).reshape(batch, length)
    within = np.lexsort((window_keys, window), axis=1)
    return rows[np.take_along_axis(walk, within, axis=1)].astype(np.int32)


def draw_crop(crop: CropConfig, *, g: int, row: int, short_side: int, step: int, seed: int) -> Sample:
    """The crop of sample g: r by the published law, then its corner. Source: INFD section 4.2; published sampler.

    r = P with p_whole; else min(short side, r_max) with p_max (p_max_late from step late_from_step on); else uniform
    on the integers r_min … min(short side, r_max), both included.
    """
    *place, whole, largest = random_words(6, seed=seed, purpose=CROPS, index=g).tolist()
    late = crop.late_from_step is not None and step + 1 >= crop.late_from_step  # which counts from 1
    r = None
    if unit(whole) < crop.p_whole:
        r = crop.patch_px
    elif unit(largest) < (crop.p_max_late if late else crop.p_max):
        r = min(short_side, crop.r_max)
    sample = cut(crop, place, g=g, row=row, r=r, side=short_side)
    if crop.flip:  # a stream of its own, so that all else is the same with and without
        return sample._replace(flip=bool(int(random_words(1, seed=seed, purpose=FLIPS, index=g)[0]) >> 63))
    return sample


def cut(crop: CropConfig, words: list[int], *, g: int, row: int, r: int | None, side: int) -> Sample:
    """The sample that four random words give; r uniform on r_min … min(side, r_max) if it is None."""
    if r is None:
        r = crop.r_min + below(words[0], min(side, crop.r_max) - crop.r_min + 1)
    corners = r - crop.patch_px + 1
    offset = 0.5 if crop.view == "center" else unit(words[3])
    return Sample(g, row, offset, r, below(words[1], corners), below(words[2], corners))


def random_words(count: int, *, seed: int, purpose: int, index: int) -> np.ndarray:
    """(count,) uint64: the `index`-th random stream of (seed, purpose)."""
    key = np.array([seed % 2**64, purpose], dtype=np.uint64)
    counter = np.array([0, index, 0, 0], dtype=np.uint64)
    return np.asarray(np.random.Philox(key=key, counter=counter).random_raw(count))


def unit(word: int) -> float:
    """A random word as a number in [0, 1)."""
    return (word >> 11) * 2.0**-53


def below(word: int, count: int) -> int:
    """A random word as an integer 0 … count - 1, uniform to within count / 2**64."""
    return word * count >> 64
