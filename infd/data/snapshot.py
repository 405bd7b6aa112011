"""A dataset at one moment: its manifest, the `Dataset` that reads photos through it, and how a snapshot is committed.

    ROOT/shards/ab/ab12….arrow        named by their sha256, never changed
    ROOT/snapshots/00000007.parquet   the manifest: a row a shard, facts about the whole in its metadata
    ROOT/latest                       number of the newest snapshot; a hint, see `newest_number`
    ROOT/runs/RUN/…                   what ingests leave behind

A manifest holds, for each shard, lists with an entry a photo, so that the order of training is known without opening
a shard. Photos that a later ingest replaced stay in their shard and are named in `dropped`: they have no row.
"""

import contextlib
import hashlib
import io
import json
import logging
import os
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from infd import config_form, storage
from infd.config import IngestConfig
from infd.data import pyramid, scratch, shards, shared_cache
from infd.data.pyramid import View
from infd.data.shards import Shard
from infd.errors import DatasetError, PhotoError, PreconditionFailed

logger = logging.getLogger(__name__)

FORMAT = "infd-snapshot-1"
OPEN_SHARDS = 256
"""Mapped files that a Dataset holds open."""
TEMPORARY = "infd-shard-"
"""Of the folder in which a unit writes its shard."""

ENTRY = pa.schema([("sha256", pa.string()), ("bytes", pa.int64()), ("rows", pa.int32()),
                   ("dropped", pa.list_(pa.int32())),  # rows of the file that are no photo of this snapshot
                   ("short_sides", pa.list_(pa.int32())), ("long_sides", pa.list_(pa.int32())),
                   ("groups", pa.list_(pa.string())), ("splits", pa.list_(pa.string())),
                   ("image_ids", pa.list_(pa.string())), ("uris", pa.list_(pa.string())),
                   ("etags", pa.list_(pa.string()))])
"""A row of the manifest: one shard; lists have an entry for every row of its file."""
NEEDED = ("sha256", "bytes", "rows", "dropped", "short_sides", "long_sides", "groups", "splits")
"""Columns that reading needs; the rest is for the next ingest."""


@dataclass(frozen=True)
class ShardEntry:
    """One shard of a manifest: its name, its bytes, the rows in its file, and those of them that do not count."""

    sha256: str
    bytes: int
    rows: int
    dropped: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class Manifest:
    """What a snapshot holds, as plain arrays; N photos in S shards, in manifest order. No I/O."""

    shards: list[ShardEntry]
    first_row: np.ndarray
    """int64 (S + 1,): the row of each shard's first photo; the last entry is N."""
    short_side: np.ndarray
    """int32 (N,), pixels."""
    long_side: np.ndarray
    """int32 (N,), pixels."""
    split: np.ndarray
    """uint8 (N,): 1 is val."""
    group: np.ndarray
    """int32 (N,): index into group_names."""
    group_names: list[str]
    row_in_shard: np.ndarray | None = None
    """int32 (N,): row in the shard's file; None: no row is dropped."""
    info: dict[str, Any] = field(default_factory=dict)
    """parent, source, config, counts, … of the snapshot."""

    def __len__(self) -> int:
        return int(self.first_row[-1])

    def locate(self, row: int) -> tuple[int, int]:
        """(shard index, row in its file) of a photo. Raises IndexError."""
        if not 0 <= row < len(self):
            raise IndexError(f"row {row}: the snapshot has {len(self)} photos")
        shard = int(np.searchsorted(self.first_row, row, side="right")) - 1
        inside = row - int(self.first_row[shard]) if self.row_in_shard is None else int(self.row_in_shard[row])
        return shard, inside

    def content_sha256(self) -> str:
        """Of what it holds, whatever its address: its shards, the rows that count, and their split, in order."""
        shards_of = json.dumps([[entry.sha256, sorted(entry.dropped)] for entry in self.shards]).encode()
        return hashlib.sha256(shards_of + np.asarray(self.split, np.uint8).tobytes()).hexdigest()


# ---------------------------------------------------------------- manifest ⇄ table


def entry_of(path: str, sha256: str) -> dict[str, Any]:
    """The manifest's row for a local shard file."""
    rows = list(Shard(path))
    return {"sha256": sha256, "bytes": os.path.getsize(path), "rows": len(rows), "dropped": [],
            "short_sides": [min(row["width"], row["height"]) for row in rows],
            "long_sides": [max(row["width"], row["height"]) for row in rows],
            "groups": [row["group"] for row in rows], "splits": [row["split"] for row in rows],
            "image_ids": [row["image_id"] for row in rows], "uris": [row["uri"] for row in rows],
            "etags": [row["etag"] for row in rows]}


def manifest_of(table: pa.Table) -> Manifest:
    """The arrays of a manifest's table (columns NEEDED suffice)."""
    entries = [ShardEntry(e["sha256"], e["bytes"], e["rows"], tuple(e["dropped"] or ()))
               for e in table.select(["sha256", "bytes", "rows", "dropped"]).to_pylist()]
    alive = [np.setdiff1d(np.arange(e.rows, dtype=np.int32), e.dropped).astype(np.int32) for e in entries]
    starts = np.concatenate([[0], np.cumsum([e.rows for e in entries])]).astype(np.int64)
    kept = np.concatenate([start + rows for start, rows in zip(starts, alive, strict=False)] or [np.zeros(0, np.int64)])
    groups = flattened(table, "groups").dictionary_encode()
    names = sorted(groups.dictionary.to_pylist())
    code = np.array([names.index(name) for name in groups.dictionary.to_pylist()], np.int32)
    return Manifest(
        shards=entries,
        first_row=np.concatenate([[0], np.cumsum([len(rows) for rows in alive])]).astype(np.int64),
        short_side=flattened(table, "short_sides").to_numpy(zero_copy_only=False)[kept],
        long_side=flattened(table, "long_sides").to_numpy(zero_copy_only=False)[kept],
        split=(flattened(table, "splits").to_numpy(zero_copy_only=False) == "val").astype(np.uint8)[kept],
        group=code[groups.indices.to_numpy(zero_copy_only=False)[kept]] if len(kept) else np.zeros(0, np.int32),
        group_names=names,
        row_in_shard=np.concatenate(alive) if alive else np.zeros(0, np.int32),
        info=json.loads((table.schema.metadata or {}).get(b"infd", b"{}")))


def flattened(table: pa.Table, column: str) -> pa.Array:
    """The values of a list column in one array, an entry for every row of every shard's file."""
    chunks = table.column(column).combine_chunks()
    array = chunks.combine_chunks() if isinstance(chunks, pa.ChunkedArray) else chunks
    return array.flatten()


def manifest_bytes(entries: list[dict[str, Any]], info: dict[str, Any]) -> bytes:
    """A manifest file. Law: equal entries and info give equal bytes; `info` must hold no time and no host."""
    about = json.dumps({"format": FORMAT, **info}, sort_keys=True, ensure_ascii=False)
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(entries, ENTRY.with_metadata({"infd": about})), buffer, compression="zstd")
    return buffer.getvalue()


def counts(entries: list[dict[str, Any]]) -> dict[str, Any]:
    """Photos, shards, bytes, and photos of each group and split, for a manifest's info."""
    photos = manifest_of(pa.Table.from_pylist(entries, ENTRY))
    groups = {name: int((photos.group == code).sum()) for code, name in enumerate(photos.group_names)}
    return {"photos": len(photos), "shards": len(entries), "bytes": sum(e["bytes"] for e in entries),
            "val": int(photos.split.sum()), "groups": groups}


# ---------------------------------------------------------------- committing


def manifest_uri(root: str, number: int) -> str:
    return storage.join(root, "snapshots", f"{number:08d}.parquet")


def newest_number(root: str) -> int | None:
    """The newest snapshot's number, None where there is none.

    A snapshot exists from the moment its manifest does. `latest` may lag behind where a committer died between the
    two writes, so the numbers after it are tried too.
    """
    hint = storage.join(root, "latest")
    number = _parsed_latest(hint, storage.read_bytes(hint)) if storage.exists(hint) else 0
    while storage.exists(manifest_uri(root, number + 1)):
        number += 1
    return number or None


def _parsed_latest(uri: str, data: bytes) -> int:
    try:
        return int(data)
    except ValueError as error:
        raise DatasetError(f"{uri}: it holds {data[:20]!r}; expected a number; write the number of the newest file "
                           "in snapshots/ into it") from error


def commit(root: str, number: int, data: bytes) -> str:
    """Make `data` the manifest of snapshot `number`; its address `root@number`.

    Law: of two committers at once one wins, the other gets PreconditionFailed; a committer that repeats itself after
    a crash wins again. Shards must be in place before. Of a local dataset it also removes the half-written files that
    killed processes left.
    """
    where = manifest_uri(root, number)
    try:
        storage.put_if_absent(where, data)
    except PreconditionFailed as error:
        if storage.read_bytes(where) != data:
            raise PreconditionFailed(f"{where}: another ingest committed snapshot {number} first; run this one again, "
                                     "it goes on from there") from error
    advance_latest(root, number)
    storage.remove_left(root)
    return f"{root}@{number}"


def advance_latest(root: str, number: int) -> None:
    """Raise `latest` to `number`; whoever raised it further meanwhile is right."""
    hint = storage.join(root, "latest")
    while True:
        data, etag = storage.read_with_etag(hint) if storage.exists(hint) else (b"0", None)
        if _parsed_latest(hint, data) >= number:
            return
        with contextlib.suppress(PreconditionFailed):
            return storage.replace_if_unchanged(hint, str(number).encode(), etag)


# ---------------------------------------------------------------- reading


def split_address(uri: str) -> tuple[str, int | None]:
    """("root", 7) for "root@7", ("root", None) for "root"."""
    root, at, number = uri.rstrip("/").rpartition("@")
    return (root.rstrip("/"), int(number)) if at and number.isascii() and number.isdigit() else (uri, None)


def read_table(root: str, number: int, columns: Iterable[str] | None = None) -> pa.Table:
    """The manifest's table, or some columns of it. Raises DatasetError naming it, StorageError where the store fails."""
    where = manifest_uri(root, number)
    try:
        data = storage.read_bytes(where)
    except storage.Unreadable as error:
        if storage.exists(where):
            raise
        newest = newest_number(root)
        hint = f"its newest snapshot is {newest}" if newest else "nothing was ingested there yet"
        raise DatasetError(f"{root}@{number}: no such snapshot; {hint}") from error
    try:
        table = pq.ParquetFile(pa.BufferReader(data)).read(columns=list(columns) if columns else None)
    except (pa.ArrowException, OSError) as error:
        raise DatasetError(f"{where}: it cannot be read as a manifest ({type(error).__name__}); expected the file that "
                           "an ingest committed; open an older snapshot, as in DATASET@N") from error
    found = json.loads((table.schema.metadata or {}).get(b"infd", b"{}")).get("format")
    if found != FORMAT:
        raise DatasetError(f"{where}: format {found}; expected {FORMAT}; use the version of infd that wrote it")
    return table


def open_dataset(uri: str) -> "Dataset":
    """The newest snapshot of the dataset at `uri`, or the one that "…@7" names. Raises DatasetError if there is none."""
    root, number = split_address(uri)
    root = storage.absolute(root)
    number = newest_number(root) if number is None else number
    if number is None:
        storage.require_root(root)
        raise DatasetError(f"{uri}: no snapshot there; expected a dataset; make one with jobs/ingest.py")
    return Dataset(root, number, manifest_of(read_table(root, number, NEEDED)))


class Dataset:
    """The photos of one snapshot, by row. Safe to use from several threads; pickles as its address.

    `fetch(entry)` gives the local path of a shard whose bytes it has checked; replace it to cache in another way,
    and call `forget` before deleting a file that it gave.
    """

    def __init__(self, uri: str, number: int, manifest: Manifest) -> None:
        self.uri, self.number, self.manifest = uri, number, manifest
        self.fetch: Callable[[ShardEntry], str] = self.fetch_to_cache
        self._lock = threading.Lock()
        self._open: OrderedDict[str, Shard] = OrderedDict()

    @property
    def snapshot_uri(self) -> str:
        """`root@7`: this snapshot, whatever is ingested later."""
        return f"{self.uri}@{self.number}"

    def __repr__(self) -> str:
        return f"Dataset({self.snapshot_uri!r}, {len(self)} photos)"

    def __reduce__(self) -> tuple[Any, ...]:
        return open_dataset, (self.snapshot_uri,)

    def copy(self) -> "Dataset":
        """The same snapshot, with a `fetch` and open shards of its own."""
        return Dataset(self.uri, self.number, self.manifest)

    def __len__(self) -> int:
        return len(self.manifest)

    def __getitem__(self, row: int) -> dict[str, Any]:
        """image_id, uri, etag, bytes, width, height, group, split, caption, license, author, meta (a dict) of a photo."""
        shard, inside = self.shard_of(row)
        facts = self.shard(shard).facts(inside)
        return {**facts, "meta": json.loads(facts["meta"])}

    def shard_of(self, row: int) -> tuple[int, int]:
        """(index into manifest.shards, row in that shard's file). Raises IndexError."""
        return self.manifest.locate(row)

    def view(self, row: int, offset: float | str = "center") -> View:
        """The square view of a photo: "center", or `offset` in [0, 1] of the way along its long side."""
        return _square(self.photo(row), offset)

    def patch(self, row: int, *, r: int, y: int, x: int, size: int, view: View | float | str = "center") -> np.ndarray:
        """The size × size pixels at (y, x) of the view at side r: uint8 (size, size, 3)."""
        photo = self.photo(row)
        return pyramid.read_patch(photo, r=r, y=y, x=x, h=size, w=size, view=_square(photo, view))

    def lowres(self, row: int, *, size: int = 256, view: View | float | str = "center") -> np.ndarray:
        """The whole view at side `size`: uint8 (size, size, 3). For the centred view it comes from what is stored."""
        photo = self.photo(row)
        square = _square(photo, view)
        if square != _square(photo, "center") or size > min(pyramid.LOWRES_PX, square.side):
            return pyramid.read_patch(photo, r=size, y=0, x=0, h=size, w=size, view=square)
        return pyramid.read_lowres(photo, size)

    def photo(self, row: int) -> shards.StoredPhoto:
        """The encoded tiles and lowres of a photo, as views into its shard."""
        shard, inside = self.shard_of(row)
        return self.shard(shard).photo(inside)

    def shard(self, index: int) -> Shard:
        """An open shard; the most recent OPEN_SHARDS stay open."""
        entry = self.manifest.shards[index]
        with self._lock:
            if (found := self._open.get(entry.sha256)) is not None:
                self._open.move_to_end(entry.sha256)
                return found
        opened = Shard(self.fetch(entry))
        if len(opened) != entry.rows:
            raise DatasetError(f"{opened.name}: {len(opened)} rows; {self.snapshot_uri} says {entry.rows}; delete the "
                               "file and get it again")
        with self._lock:
            self._open[entry.sha256] = opened
            while len(self._open) > OPEN_SHARDS:
                self._open.popitem(last=False)
        return opened

    def forget(self, sha256: str) -> None:
        """Let go of a shard's mapped file, so that deleting it gives its space back."""
        with self._lock:
            self._open.pop(sha256, None)

    def shard_uri(self, entry: ShardEntry) -> str:
        return storage.join(self.uri, shards.key(entry.sha256))

    def fetch_to_cache(self, entry: ShardEntry) -> str:
        """The shard's local path: in place for a local dataset, else in the machine's cache folder (shared_cache.py);
        checked by its sha256. Shards that the folder no longer holds are let go of, so that their space comes back."""
        uri = self.shard_uri(entry)
        if not storage.is_remote(uri):
            path = storage.local_path(uri)
            shards.require_whole(path, entry.sha256, entry.bytes)
            return path
        path = shared_cache.fetch(uri, entry.sha256, entry.bytes)
        with self._lock:
            for sha256 in [sha256 for sha256, shard in self._open.items() if not os.path.exists(shard.path)]:
                del self._open[sha256]
        return path


def _square(photo: shards.StoredPhoto, view: View | float | str) -> View:
    """The view itself, the centred one, or the one at an offset."""
    if isinstance(view, View):
        return view
    width, height = photo.levels[0].width, photo.levels[0].height
    if isinstance(view, str):
        if view != "center":
            raise ValueError(f"view={view}: expected 'center', a number in [0, 1] or a View")
        return pyramid.center_view(width, height)
    return pyramid.view_at(width, height, view)


# ---------------------------------------------------------------- writing without a cluster


def write_shards(rows: Iterable[dict[str, Any]], root: str, config: IngestConfig) -> list[dict[str, Any]]:
    """Rows of `shards.photo_row` into shards under `root`, in order; the manifest's rows. One photo in memory at a
    time, beside a record batch; a shard is closed when its tiles reach config.shard_bytes."""
    entries: list[dict[str, Any]] = []
    with scratch.folder(TEMPORARY) as folder:
        path = os.path.join(folder, "shard.arrow")
        writer = None
        for row in rows:
            writer = writer or shards.ShardWriter(path, config)
            writer.add(row)
            if writer.tile_bytes >= config.shard_bytes:
                entries.append(_stored(writer, root))
                writer = None
        if writer is not None:
            entries.append(_stored(writer, root))
    return entries


def _stored(writer: shards.ShardWriter, root: str) -> dict[str, Any]:
    sha256 = writer.close()
    entry = entry_of(writer.path, sha256)
    storage.put_file(storage.join(root, shards.key(sha256)), writer.path)
    os.unlink(writer.path)
    return entry


def write_dataset(sources: Iterable[tuple[str, bytes]], uri: str, config: IngestConfig, *, group: str = "") -> Dataset:
    """A new dataset at `uri` from (uri, bytes) of source files, in this process. What is no photo is logged and left
    out. Raises DatasetError where a dataset stands already, or where no photo is left."""
    root = storage.absolute(uri)
    if newest_number(root) is not None:
        raise DatasetError(f"{uri}: a dataset stands there; expected an empty place; add to it with jobs/ingest.py")
    rejected: list[PhotoError] = []
    seen: set[str] = set()

    def rows() -> Iterable[dict[str, Any]]:
        for source, data in sources:
            try:
                row = shards.photo_row(source, shards.image_id(data), data, config=config, group=group)
                if row["image_id"] in seen:
                    raise PhotoError("duplicate")
                seen.add(row["image_id"])
                yield row
            except PhotoError as error:
                rejected.append(error)
                logger.warning("%s: rejected, %s", source, error)

    entries = write_shards(rows(), root, config)
    if not entries:
        raise DatasetError(f"{uri}: no photo among {len(rejected)} source files; expected at least one")
    info = {"parent": None, "source": "", "config": config_form.flat(config), "config_sha256": config_form.identity(config),
            "counts": {**counts(entries), "rejected": dict(Counter(error.reason for error in rejected))}}
    commit(root, 1, manifest_bytes(entries, info))
    return open_dataset(f"{root}@1")
