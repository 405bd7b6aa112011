"""Latents of a snapshot: what the encoder made of each photo's whole view, as Arrow shards that stage two reads.

    LATENTS/pins.json                what they are of, written first: snapshot, checkpoint, settings
    LATENTS/autoencoder/…            the autoencoder that made them, a checkpoint (infd/checkpoint.py)
    LATENTS/shards/ab/ab12….arrow    named by their sha256; one for each shard of the snapshot, its photos in order
    LATENTS/units/PHOTO-SHARD.json   which of them is of a shard of photos, and its facts
    LATENTS/latents.parquet          the manifest, written last: without it there are no latents

The manifest has the form of a snapshot's, so the order of training is the one that photographs would have.
Shapes: M channels (Z, or 2 Z of a Gaussian latent: means, then log-variances), l side of z, S tokens and K channels of a
caption's embedding.
"""

import contextlib
import hashlib
import io
import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from infd import storage
from infd.config import CropConfig
from infd.data import shards, shared_cache
from infd.data.loader import BatchReader
from infd.data.order import Sample
from infd.data.snapshot import ENTRY, Dataset, Manifest, ShardEntry, manifest_of
from infd.errors import DatasetError, PreconditionFailed

FORMAT = "infd-latents-1"
MANIFEST, PINS, AUTOENCODER = "latents.parquet", "pins.json", "autoencoder"
FACTS = ["image_id", "group", "split", "caption"]
"""Columns that are small: what `Latents[row]` returns."""
OPEN_SHARDS = 256
"""Mapped files that a Latents holds open."""


@dataclass(frozen=True)
class LatentBatch:
    """One step's samples, in the order of their slots."""

    step: int
    g: Tensor
    """(B,) int64: global sample numbers."""
    moments: Tensor
    """(B, M, l, l) float32: z before quantization; of a Gaussian latent its means and log-variances."""
    labels: Tensor | None = None
    """(B,) int64: the groups, by their places in the manifest's group_names."""
    context: Tensor | None = None
    """(B, S, K) float32: embeddings of the captions, where the latents hold some."""
    rows: tuple[int, ...] = ()
    """Photos, in manifest order."""


# ---------------------------------------------------------------- one file


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What a shard of latents holds; in its file's metadata."""

    shape: tuple[int, int, int]
    """(M, l, l)."""
    dtype: str
    """float32 or float16."""
    flip: bool
    """Whether the latents of the mirrored views are there too."""
    context: tuple[int, int] | None = None
    """(S, K), where captions are embedded."""

    def schema(self) -> pa.Schema:
        """Columns: image_id, group, split, caption, z, and as it may be z_flip and context."""
        kind = {"float32": pa.float32(), "float16": pa.float16()}[self.dtype]
        z = pa.list_(kind, int(np.prod(self.shape)))
        fields = [*(pa.field(name, pa.string(), nullable=name == "caption") for name in FACTS),
                  pa.field("z", z, nullable=False)]
        if self.flip:
            fields.append(pa.field("z_flip", z, nullable=False))
        if self.context:
            fields.append(pa.field("context", pa.list_(pa.float32(), int(np.prod(self.context))), nullable=False))
        about = {"format": FORMAT, "shape": json.dumps(self.shape), "context": json.dumps(self.context)}
        return pa.schema(fields, metadata=about)


class LatentWriter:
    """Rows into one local file; `close` returns its sha256. Equal rows give equal bytes."""

    def __init__(self, path: str, layout: Layout) -> None:
        self.layout, self._schema, self._sink = layout, layout.schema(), pa.OSFile(path, "wb")
        self.path, self._file = path, pa.ipc.new_file(self._sink, self._schema)

    def add(self, facts: Sequence[dict[str, Any]], arrays: dict[str, np.ndarray]) -> None:
        """facts: image_id, group, split, caption of n photos; arrays: z, z_flip (n, M, l, l) and context (n, S, K), as the
        layout has them, in its dtype."""
        columns: list[pa.Array] = []
        for field in self._schema:
            if field.name in arrays:
                flat = pa.array(np.ascontiguousarray(arrays[field.name]).reshape(-1), field.type.value_type)
                columns.append(pa.FixedSizeListArray.from_arrays(flat, type=field.type))
            else:
                columns.append(pa.array([row[field.name] for row in facts], field.type))
        self._file.write_batch(pa.RecordBatch.from_arrays(columns, schema=self._schema))

    def close(self) -> str:
        """Write the footer; the sha256 (hex) of the file."""
        self._file.close()
        self._sink.close()
        return storage.file_sha256(self.path)


class LatentShard:
    """A file of latents, mapped into memory. Raises DatasetError where it is none."""

    def __init__(self, path: str) -> None:
        self.path = path
        try:
            file = pa.ipc.open_file(pa.memory_map(path))
            about = {key.decode(): value.decode() for key, value in (file.schema.metadata or {}).items()}
            if about.get("format") != FORMAT:
                raise DatasetError(f"{path}: format {about.get('format')}; expected {FORMAT}; use the version that wrote it")
            batches = [file.get_batch(index) for index in range(file.num_record_batches)]
        except (pa.ArrowException, OSError) as error:
            raise DatasetError(f"{path}: not a shard of latents ({error}); fetch it again, or encode again") from error
        self._first = np.cumsum([0, *(batch.num_rows for batch in batches)])
        z = json.loads(about["shape"])
        shapes = {"z": z, "z_flip": z, "context": json.loads(about["context"])}
        self._columns = {name: [batch.column(name).flatten().to_numpy().reshape(-1, *shape) for batch in batches]
                         for name, shape in shapes.items() if name in file.schema.names}
        self._facts = [batch.select(FACTS) for batch in batches]

    def __len__(self) -> int:
        return int(self._first[-1])

    def take(self, name: str, row: int) -> np.ndarray:
        """z or z_flip (M, l, l), or context (S, K), of a row: a view into the file."""
        batch, inside = self._place(row)
        return self._columns[name][batch][inside]

    def facts(self, row: int) -> dict[str, Any]:
        """image_id, group, split, caption of a row."""
        batch, inside = self._place(row)
        return self._facts[batch].slice(inside, 1).to_pylist()[0]

    def _place(self, row: int) -> tuple[int, int]:
        batch = int(np.searchsorted(self._first, row, side="right")) - 1
        return batch, row - int(self._first[batch])


# ---------------------------------------------------------------- all of them


class Latents:
    """The latents of one snapshot, by row. Safe to use from several threads; pickles as its address.

    `info`, from the manifest: snapshot, checkpoint, checkpoint_sha256, dtype, flip, shape, context, z_dim, quantizer,
    scale (standard deviation of all numbers of z), counts, rounding.
    """

    def __init__(self, uri: str, manifest: Manifest, sha256: str) -> None:
        self.uri, self.manifest = uri, manifest
        self.sha256 = sha256
        """Of the manifest's file: it names these latents for ever."""
        self.fetch: Callable[[ShardEntry], str] = self.fetch_to_cache
        self._lock = threading.Lock()
        self._open: OrderedDict[str, LatentShard] = OrderedDict()

    def are_of(self, dataset: Dataset) -> bool:
        """Whether these photos were encoded, and not others that had their address before."""
        content = dataset.manifest.content_sha256()
        return self.info["snapshot"] == dataset.snapshot_uri and self.info.get("snapshot_sha256", content) == content

    @property
    def info(self) -> dict[str, Any]:
        return self.manifest.info

    @property
    def shape(self) -> tuple[int, int, int]:
        """(M, l, l)."""
        channels, rows, columns = self.info["shape"]
        return channels, rows, columns

    @property
    def context(self) -> tuple[int, int] | None:
        """(S, K) of the embedded captions, None without."""
        return tuple(self.info["context"]) if self.info["context"] else None

    @property
    def autoencoder_uri(self) -> str:
        """The checkpoint of the autoencoder that made them."""
        return storage.join(self.uri, AUTOENCODER)

    def __reduce__(self) -> tuple[Any, ...]:
        return open_latents, (self.uri,)

    def __len__(self) -> int:
        return len(self.manifest)

    def copy(self) -> "Latents":
        return Latents(self.uri, self.manifest, self.sha256)

    def take(self, name: str, row: int) -> np.ndarray:
        """z or z_flip (M, l, l), or context (S, K), of a photo. Raises DatasetError for what was not written."""
        shard, inside = self.manifest.locate(row)
        try:
            return self.shard(shard).take(name, inside)
        except KeyError:
            raise DatasetError(f"latents {self.uri}: they hold no {name}; encode again into another --out, "
                               f"{'with --conditions' if name == 'context' else 'without --no-flip'}") from None

    def __getitem__(self, row: int) -> dict[str, Any]:
        """image_id, group, split, caption of a photo."""
        shard, inside = self.manifest.locate(row)
        return self.shard(shard).facts(inside)

    def shard(self, index: int) -> LatentShard:
        """An open shard; the most recent OPEN_SHARDS stay open."""
        entry = self.manifest.shards[index]
        with self._lock:
            if (found := self._open.get(entry.sha256)) is not None:
                self._open.move_to_end(entry.sha256)
                return found
        opened = LatentShard(self.fetch(entry))
        with self._lock:
            self._open[entry.sha256] = opened
            while len(self._open) > OPEN_SHARDS:
                self._open.popitem(last=False)
        return opened

    def forget(self, sha256: str) -> None:
        """Let go of a shard's mapped file."""
        with self._lock:
            self._open.pop(sha256, None)

    def shard_uri(self, entry: ShardEntry) -> str:
        return storage.join(self.uri, shards.key(entry.sha256))

    def fetch_to_cache(self, entry: ShardEntry) -> str:
        """The shard's local path: in place, or in the machine's cache folder; checked by its sha256."""
        uri = self.shard_uri(entry)
        if storage.is_remote(uri):
            return shared_cache.fetch(uri, entry.sha256, entry.bytes)
        path = storage.local_path(uri)
        shards.require_whole(path, entry.sha256, entry.bytes)
        return path


def open_latents(uri: str) -> Latents:
    """The latents at `uri`. Raises DatasetError where there are none, or not all yet."""
    root = storage.absolute(uri)
    where = storage.join(root, MANIFEST)
    if not storage.exists(where):
        begun = storage.exists(storage.join(root, PINS))
        raise DatasetError(f"{uri}: " + ("latents that are not all there; run the same jobs/encode_latents.py again" if begun
                                         else "no latents there; make some with jobs/encode_latents.py"))
    data = storage.read_bytes(where)
    try:
        table = pq.ParquetFile(pa.BufferReader(data)).read()
    except pa.ArrowException as error:
        raise DatasetError(f"{where}: it cannot be read ({error}); encode again into another --out") from error
    manifest = manifest_of(table)
    if (found := manifest.info.get("format")) != FORMAT:
        raise DatasetError(f"{where}: format {found}; expected {FORMAT}; use the version of infd that wrote it")
    return Latents(root, manifest, hashlib.sha256(data).hexdigest())


def manifest_bytes(entries: list[dict[str, Any]], info: dict[str, Any]) -> bytes:
    """A manifest's file; rows of `snapshot.ENTRY`. Law: equal entries and info give equal bytes."""
    about = json.dumps({**info, "format": FORMAT}, sort_keys=True)
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(entries, ENTRY.with_metadata({"infd": about})), buffer, compression="zstd")
    return buffer.getvalue()


# ---------------------------------------------------------------- reading for training


def latent_crop(*, flip: bool, lowres_px: int = 16) -> CropConfig:
    """The order of latents is that of crops of which only the photo and the mirroring matter."""
    return CropConfig(patch_px=16, r_min=16, r_max=16, lowres_px=lowres_px, flip=flip)


class LatentLoader(BatchReader[Latents, LatentBatch]):
    """Latents, a batch a step; mirrored ones where the order says so."""

    def _made(self, samples: Sequence[Sample]) -> LatentBatch:
        latents, count = self.dataset, len(samples)
        rows = tuple(sample.row for sample in samples)
        return LatentBatch(
            step=samples[0].g // self.order.batch_size if samples else 0,
            g=torch.tensor([sample.g for sample in samples], dtype=torch.int64),
            moments=self._empty((count, *latents.shape), torch.float32),
            labels=torch.from_numpy(latents.manifest.group[list(rows)].astype(np.int64)),
            context=self._empty((count, *latents.context), torch.float32) if latents.context else None,
            rows=rows)

    def _read_into(self, batch: LatentBatch, at: int, sample: Sample, where: str) -> None:
        try:
            batch.moments[at] = torch.from_numpy(np.array(self.dataset.take("z_flip" if sample.flip else "z", sample.row)))
            if batch.context is not None:
                batch.context[at] = torch.from_numpy(np.array(self.dataset.take("context", sample.row)))
        except Exception as error:
            raise DatasetError(f"{where}: {error}") from error


# ---------------------------------------------------------------- what they are of


@dataclass(frozen=True, kw_only=True)
class Pins:
    """What decides every number of some latents."""

    snapshot: str
    snapshot_sha256: str
    """Of what it held: a dataset that was removed and made anew has the same address."""
    checkpoint: str
    """Where the autoencoder was; it may have gone since."""
    checkpoint_sha256: str
    """Of its weights."""
    settings: dict[str, Any]
    """flat form of the LatentConfig, without what changes no number."""
    conditions_sha256: str | None = None
    """Of the table of captions, where there is one."""


def pin(uri: str, pins: Pins) -> Pins:
    """Write down what the latents at `uri` are of, or find it the same; what was written. Raises DatasetError naming both."""
    where = storage.join(uri, PINS)
    content = {"format": FORMAT, **asdict(pins)}
    with contextlib.suppress(PreconditionFailed):
        storage.put_if_absent(where, json.dumps(content, indent=1, sort_keys=True).encode())
    found = content | json.loads(storage.read_bytes(where))      # what an older one does not tell is taken for the same
    for name, what in (("snapshot", "the snapshot"), ("snapshot_sha256", f"photos of {pins.snapshot} whose list has sha256"),
                       ("checkpoint_sha256", "an autoencoder whose weights have sha256"),
                       ("settings", "the settings"), ("conditions_sha256", "captions whose table has sha256")):
        if found.get(name) != content[name]:
            go_on = (f"--checkpoint {storage.join(uri, AUTOENCODER)}, which was {found['checkpoint']}"
                     if name == "checkpoint_sha256" else "what they are of")
            raise DatasetError(f"latents {uri}: they are of {what} {found[name]}, not {content[name]}; latents of two are "
                               f"never mixed: name another --out, or go on with {go_on}")
    return Pins(**{name: found[name] for name in asdict(pins)})


def unit_uri(uri: str, photo_shard: ShardEntry) -> str:
    """The record that a shard of photos is encoded."""
    return storage.join(uri, "units", f"{photo_shard.sha256}.json")


def unit_done(uri: str, photo_shard: ShardEntry) -> dict[str, Any] | None:
    """The record, or None where the shard is not encoded yet."""
    where = unit_uri(uri, photo_shard)
    return json.loads(storage.read_bytes(where)) if storage.exists(where) else None
