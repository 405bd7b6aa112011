"""Shards: immutable Arrow IPC files of photos, a row a photo, named by the sha256 of their bytes.

A file describes itself: its schema's metadata hold the format's version, tile side, codec, filter and the packages
that made it. Record batches hold at most 64 MiB of tiles, or one photo. Equal rows give equal bytes. Reading maps the
file into memory: a tile is a slice of it, never a copy.
"""

import functools
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import imagecodecs
import numpy as np
import PIL
import pyarrow as pa

from infd.config import IngestConfig
from infd.data import photo, pyramid
from infd.data.pyramid import Level
from infd.errors import DatasetError, PhotoError
from infd.storage import file_sha256

FORMAT = "infd-shard-1"
BATCH_BYTES = 64 << 20
SUFFIX = ".arrow"
MOST_TILE_BYTES = (1 << 31) - (1 << 20)
"""One photo's tiles share 32-bit offsets."""

LEVEL = pa.struct([pa.field("width", pa.int32(), nullable=False), pa.field("height", pa.int32(), nullable=False),
                   pa.field("first_tile", pa.int32(), nullable=False)])
SCHEMA = pa.schema([
    pa.field("image_id", pa.string(), nullable=False),  # first 16 bytes of the sha256 of the source bytes, hex
    pa.field("uri", pa.string(), nullable=False),
    pa.field("etag", pa.string(), nullable=False),
    pa.field("bytes", pa.int64(), nullable=False),  # of the source file
    pa.field("width", pa.int32(), nullable=False),
    pa.field("height", pa.int32(), nullable=False),
    pa.field("group", pa.string(), nullable=False),
    pa.field("split", pa.string(), nullable=False),  # train or val
    pa.field("caption", pa.string()),
    pa.field("license", pa.string()),
    pa.field("author", pa.string()),
    pa.field("meta", pa.string(), nullable=False),  # JSON
    pa.field("lowres", pa.binary(), nullable=False),
    pa.field("levels", pa.list_(LEVEL), nullable=False),
    pa.field("tiles", pa.list_(pa.binary()), nullable=False),
])
FACTS = tuple(name for name in SCHEMA.names if name not in ("lowres", "levels", "tiles"))
"""Columns that are small: what `Dataset[row]` returns."""


# ---------------------------------------------------------------- writing


def image_id(data: bytes) -> str:
    """The photo's name for ever: the first 16 bytes of its source file's sha256, in hex."""
    return hashlib.sha256(data).hexdigest()[:32]


def split_of(identity: str, val_fraction: float) -> str:
    """`val` where the hash of the image_id falls in the first `val_fraction`. Law: more of it keeps what was val."""
    place = int.from_bytes(hashlib.sha256(f"split {identity}".encode()).digest()[:8], "big")
    return "val" if place < val_fraction * 2**64 else "train"


def photo_row(uri: str, etag: str, data: bytes, *, config: IngestConfig, group: str) -> dict[str, Any]:
    """A row of SCHEMA for one source file. Raises PhotoError."""
    if len(data) > config.max_bytes:
        raise PhotoError("too_many_bytes", f"{len(data)} bytes, more than {config.max_bytes}")
    try:
        image = photo.decode(data, max_pixels=config.max_pixels, min_side_px=config.min_side_px,
                             max_aspect=config.max_aspect)
        made = pyramid.build(image, config)
    except MemoryError as error:  # says nothing of the file: a later ingest, on a larger machine, tries again
        raise PhotoError("unreadable", "not enough memory") from error
    identity = image_id(data)
    meta = json.dumps({"format": image.info["format"]})
    if sum(map(len, made.tiles)) > MOST_TILE_BYTES:
        raise PhotoError("too_many_pixels", f"{image.width}x{image.height}, tiles above 2 GiB")
    return {"image_id": identity, "uri": uri, "etag": etag, "bytes": len(data), "width": image.width,
            "height": image.height, "group": group, "split": split_of(identity, config.val_fraction), "caption": None,
            "license": None, "author": None, "meta": meta, "lowres": made.lowres,
            "levels": [level._asdict() for level in made.levels], "tiles": made.tiles}


def versions() -> dict[str, str]:
    """The packages on which the bytes of a shard depend."""
    return {"imagecodecs": imagecodecs.__version__, "pillow": PIL.__version__, "pyarrow": pa.__version__}


def schema_of(config: IngestConfig) -> pa.Schema:
    """SCHEMA with the metadata that a reader needs. No time, no host: equal inputs give equal files."""
    about = {"format": FORMAT, "tile_px": str(config.tile_px), "codec": config.codec, "filter": "lanczos",
             "raw_lowres_from_px": str(pyramid.RAW_LOWRES_FROM_PX), "versions": json.dumps(versions())}
    return SCHEMA.with_metadata(about)


class ShardWriter:
    """Rows into one local file; `close` returns its sha256. Memory: at most one record batch of tiles."""

    def __init__(self, path: str, config: IngestConfig) -> None:
        self.path, self.rows, self.tile_bytes = path, 0, 0
        self._schema = schema_of(config)
        self._waiting: list[dict[str, Any]] = []
        self._waiting_bytes = 0
        self._sink = pa.OSFile(path, "wb")
        self._file = pa.ipc.new_file(self._sink, self._schema)

    def add(self, row: dict[str, Any]) -> None:
        """Append a row of `photo_row`."""
        size = sum(map(len, row["tiles"]))
        if self._waiting and self._waiting_bytes + size > BATCH_BYTES:
            self._flush()
        self._waiting.append(row)
        self._waiting_bytes += size
        self.tile_bytes += size
        self.rows += 1

    def close(self) -> str:
        """Write what waits and the footer; the sha256 (hex) of the file."""
        self._flush()
        self._file.close()
        self._sink.close()
        return file_sha256(self.path)

    def _flush(self) -> None:
        if self._waiting:
            self._file.write_batch(pa.RecordBatch.from_pylist(self._waiting, self._schema))
            self._waiting, self._waiting_bytes = [], 0


def key(sha256: str) -> str:
    """Where a shard stands below its dataset: `shards/ab/ab12….arrow`."""
    return f"shards/{sha256[:2]}/{sha256}{SUFFIX}"


# ---------------------------------------------------------------- reading


class Tiles(Sequence[memoryview]):
    """The encoded tiles of one photo: views into the mapped file."""

    def __init__(self, batch: pa.RecordBatch, row: int) -> None:
        lists = batch.column("tiles")
        first, last = lists.offsets[row].as_py(), lists.offsets[row + 1].as_py()
        values = lists.values
        _, offsets, data = values.buffers()
        self._offsets = np.frombuffer(offsets, np.int32, last - first + 1, 4 * (values.offset + first))
        self._data = memoryview(data) if data is not None else memoryview(b"")

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, index: Any) -> Any:
        if not 0 <= index < len(self):
            raise IndexError(f"tile {index} of {len(self)}")
        return self._data[self._offsets[index]:self._offsets[index + 1]]


@dataclass(frozen=True, kw_only=True)
class StoredPhoto:
    """One row of a shard, as `pyramid.read_patch` wants it."""

    levels: list[Level]
    tiles: Tiles
    lowres: memoryview
    lowres_codec: str
    tile_px: int
    codec: str
    name: str


class Shard:
    """A shard file mapped into memory. Safe to read from several threads. Raises DatasetError naming the file."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.name = f"shard {os.path.basename(path)}"
        try:
            reader = pa.ipc.open_file(pa.memory_map(path))
            self._batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
        except (pa.ArrowException, OSError, ValueError) as error:
            raise DatasetError(f"{self.name}: it cannot be read as an Arrow file ({type(error).__name__}); it is "
                               f"damaged or cut short: delete {path} and get it again") from error
        about = {k.decode(): v.decode() for k, v in (reader.schema.metadata or {}).items()}
        if about.get("format") != FORMAT:
            raise DatasetError(f"{self.name}: format {about.get('format')}; expected {FORMAT}; use the version of "
                               "infd that wrote it")
        self.tile_px, self.codec = int(about["tile_px"]), about["codec"]
        self._raw_lowres_from_px = float(about.get("raw_lowres_from_px", "inf"))  # the first shards had none
        self._ends = np.cumsum([batch.num_rows for batch in self._batches])

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self.facts(row) for row in range(len(self)))

    def _at(self, row: int) -> tuple[pa.RecordBatch, int]:
        if not 0 <= row < len(self):
            raise DatasetError(f"{self.name} row {row}: it has {len(self)} rows; its manifest is of another file")
        batch = int(np.searchsorted(self._ends, row, side="right"))
        return self._batches[batch], row - (int(self._ends[batch - 1]) if batch else 0)

    def facts(self, row: int) -> dict[str, Any]:
        """Everything of a row but its pixels."""
        batch, at = self._at(row)
        return {name: batch.column(name)[at].as_py() for name in FACTS}

    def photo(self, row: int) -> StoredPhoto:
        """The pixels of a row, still encoded, without a copy."""
        batch, at = self._at(row)
        levels = [Level(**level) for level in batch.column("levels")[at].as_py()]
        raw = min(levels[0].width, levels[0].height) >= self._raw_lowres_from_px
        name = f"{self.name} row {row} ({batch.column('uri')[at].as_py()})"
        return StoredPhoto(levels=levels, tiles=Tiles(batch, at), lowres=memoryview(batch.column("lowres")[at].as_buffer()),
                           lowres_codec="raw" if raw else self.codec, tile_px=self.tile_px, codec=self.codec, name=name)


@functools.lru_cache(maxsize=1 << 16)
def _checked(path: str, inode: int, mtime_ns: int, size: int) -> str:
    return file_sha256(path)


def require_whole(path: str, sha256: str, size: int) -> None:
    """Raise DatasetError unless the file has its size and hash. It is read once a process, for each version of it."""
    name = f"shard {sha256}{SUFFIX}"
    try:
        stat = os.stat(path)
    except OSError as error:
        raise DatasetError(f"{name}: no file at {path} ({error.strerror}); expected {size} bytes; restore it or "
                           "open another snapshot") from error
    if stat.st_size != size:
        raise DatasetError(f"{name}: {stat.st_size} bytes at {path}; its manifest says {size}; delete the file and "
                           "get it again")
    if (found := _checked(path, stat.st_ino, stat.st_mtime_ns, stat.st_size)) != sha256:
        raise DatasetError(f"{name}: the bytes at {path} have sha256 {found[:16]}…; expected {sha256[:16]}…; delete "
                           "the file and get it again")
