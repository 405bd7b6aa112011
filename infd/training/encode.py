"""Photographs -> latents, a shard of the snapshot at a time (infd/data/latents.py has the format).

Shapes: M channels (Z, or 2 Z of a Gaussian latent), l side of z, n photos of a shard.
"""

import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from infd import checkpoint, storage
from infd.checkpoint import Checkpoint
from infd.compat import plain_float32
from infd.config import LatentConfig
from infd.config_form import flat
from infd.data import scratch, shards
from infd.data.conditions import Conditions
from infd.data.latents import AUTOENCODER, MANIFEST, LatentWriter, Layout, Pins, manifest_bytes, pin, unit_done, unit_uri
from infd.data.snapshot import Dataset, counts, open_dataset, read_table, split_address
from infd.errors import CheckpointError, DatasetError
from infd.generation.load import autoencoder_config, load_autoencoder, shown_weights
from infd.generation.registry import resolve
from infd.models.autoencoder import Autoencoder

TEMPORARY = "infd-latents-"
LAYOUT = "layout.json"
"""What every shard of the latents holds, known once the autoencoder is loaded."""
READERS = 4
"""Threads that read and resize views while others are encoded."""


def pins_of(snapshot: str, autoencoder: str, config: LatentConfig, conditions_sha256: str | None = None) -> Pins:
    """What latents of this snapshot by this checkpoint are of. Raises CheckpointError, DatasetError."""
    found = checkpoint.load(resolve(autoencoder))
    autoencoder_config(found)
    dataset = open_dataset(snapshot)
    settings = {name: value for name, value in flat(config).items() if name != "batch"}
    return Pins(snapshot=dataset.snapshot_uri, snapshot_sha256=dataset.manifest.content_sha256(), checkpoint=found.uri,
                checkpoint_sha256=weights_sha256(found), settings=settings, conditions_sha256=conditions_sha256)


def weights_sha256(found: Checkpoint) -> str:
    """Of a checkpoint's weights; of the copy that lies beside some latents, that of the original, so it stands in for it."""
    return str(found.meta.get("copied_sha256") or found.files[checkpoint.MODEL]["sha256"])


def default_uri(pins: Pins, config: LatentConfig) -> str:
    """DATASET/latents/SNAPSHOT-CHECKPOINT, the latter by the first digits of its hash; other settings add to it."""
    root, number = pins.snapshot.rsplit("@", 1)
    extra = ("" if config.dtype == "float32" else "-f16") + ("" if config.flip else "-plain")
    extra += f"-{pins.conditions_sha256[:8]}" if pins.conditions_sha256 else ""
    return storage.join(root, "latents", f"{number}-{pins.checkpoint_sha256[:8]}{extra}")


def begin(uri: str, pins: Pins) -> Pins:
    """Pin the latents at `uri` to `pins` and keep a copy of the autoencoder beside them, so that they need nothing else."""
    pins = pin(uri, pins)
    copy = storage.join(uri, AUTOENCODER)
    if not checkpoint.is_whole(copy):
        found = checkpoint.load(pins.checkpoint)
        if (sha256 := weights_sha256(found)) != pins.checkpoint_sha256:
            raise CheckpointError(f"checkpoint {found.uri}: its weights have sha256 {sha256}; the latents {uri} began with "
                                  f"{pins.checkpoint_sha256}; encode into another --out")
        weights = {f"autoencoder.{name}": value for name, value in shown_weights(found).items()}
        checkpoint.save(copy, model=weights, train_state={}, meta={**found.meta, "copied_from": found.uri,
                                                                   "copied_sha256": pins.checkpoint_sha256})
    return pins


def finish(uri: str, pins: Pins) -> dict[str, Any]:
    """Write the manifest of latents whose units are all done; its info. Raises DatasetError where one is not."""
    root, number = split_address(pins.snapshot)
    table = read_table(root, number or 0).to_pylist()
    shards_of = open_dataset(pins.snapshot).manifest.shards
    found = [unit_done(uri, shard) for shard in shards_of]
    records = [record for record in found if record is not None]
    if len(records) < len(found):
        raise DatasetError(f"latents {uri}: {len(found) - len(records)} of {len(found)} shards are not encoded yet; run the "
                           "same command again")
    entries = [entry_of(entry, record) for entry, record in zip(table, records, strict=True)]
    layout = json.loads(storage.read_bytes(storage.join(uri, LAYOUT)))
    info = {**asdict(pins), **layout, **merged(records), "counts": counts(entries), "dtype": pins.settings["dtype"],
            "flip": pins.settings["flip"]}
    storage.put_atomic(storage.join(uri, MANIFEST), manifest_bytes(entries, info))
    return info


def entry_of(entry: dict[str, Any], record: dict[str, Any]) -> dict[str, Any]:
    """The manifest's row of a shard of latents, from that of the shard of photos: rows that were dropped there are not here."""
    alive = sorted(set(range(entry["rows"])) - set(entry["dropped"] or ()))
    lists = {name: [values[row] for row in alive] for name, values in entry.items()
             if isinstance(values, list) and name != "dropped"}
    return {**entry, **lists, "dropped": [], "sha256": record["sha256"], "bytes": record["bytes"], "rows": record["rows"]}


@dataclass(frozen=True)
class Encoder:
    """What encodes a unit: all that does not change from one to the next."""

    uri: str
    dataset: Dataset
    autoencoder: Autoencoder
    config: LatentConfig
    conditions: Conditions | None = None

    @classmethod
    def open(cls, uri: str, snapshot: str, config: LatentConfig, *, device: str,
             conditions: Conditions | None = None) -> "Encoder":
        """With the autoencoder that lies beside the latents at `uri`."""
        plain_float32()
        autoencoder = load_autoencoder(storage.join(uri, AUTOENCODER), device=device)
        made = cls(uri, open_dataset(snapshot), autoencoder, config, conditions)
        storage.put_atomic(storage.join(uri, LAYOUT), json.dumps({
            "shape": made.layout.shape, "context": made.layout.context, "z_dim": autoencoder.config.z_dim,
            "quantizer": autoencoder.config.quantizer, "lowres_px": autoencoder.lowres_px}, sort_keys=True).encode())
        return made

    @property
    def layout(self) -> Layout:
        config = self.autoencoder.config
        side = (self.autoencoder.lowres_px or 0) // config.factor
        channels = config.z_dim * (2 if config.quantizer == "kl" else 1)
        return Layout(shape=(channels, side, side), dtype=self.config.dtype, flip=self.config.flip,
                      context=self.conditions.shape if self.conditions else None)

    def unit(self, index: int) -> dict[str, Any]:
        """Encode shard `index` of the snapshot, unless it is done; its record.

        Law: the record is written after the shard, so a killed unit is encoded again, to the same bytes.
        """
        entry = self.dataset.manifest.shards[index]
        if (done := unit_done(self.uri, entry)) is not None:
            return done
        manifest = self.dataset.manifest
        rows = range(int(manifest.first_row[index]), int(manifest.first_row[index + 1]))
        sums = Sums()
        with scratch.folder(TEMPORARY) as folder:
            writer = LatentWriter(os.path.join(folder, "latents.arrow"), self.layout)
            for facts, arrays in self._batches(rows, sums):
                writer.add(facts, arrays)
            sha256 = writer.close()
            record = {"sha256": sha256, "bytes": os.path.getsize(writer.path), "rows": len(rows), "sums": sums.asdict()}
            storage.put_file(storage.join(self.uri, shards.key(sha256)), writer.path)
        storage.put_atomic(unit_uri(self.uri, entry), json.dumps(record, sort_keys=True).encode())
        return record

    def _batches(self, rows: range, sums: "Sums") -> Iterator[tuple[list[dict[str, Any]], dict[str, np.ndarray]]]:
        """Facts and arrays of a few photos at a time; the next views are read meanwhile."""
        size = self.config.batch
        parts = [rows[i:i + size] for i in range(0, len(rows), size)]
        with ThreadPoolExecutor(READERS, thread_name_prefix="infd-views") as pool:
            ahead = [pool.map(self.view, part) for part in parts[:1]]
            for number, part in enumerate(parts):
                views = np.stack(list(ahead.pop(0)))
                ahead += [pool.map(self.view, after) for after in parts[number + 1:number + 2]]
                yield self._encoded(part, views, sums)

    def view(self, row: int) -> np.ndarray:
        """What the encoder sees of a photo: uint8 (L, L, 3)."""
        return self.dataset.lowres(row, size=self.autoencoder.lowres_px or 0)

    def _encoded(self, rows: range, views: np.ndarray, sums: "Sums") -> tuple[list[dict[str, Any]], dict[str, np.ndarray]]:
        facts = [self.dataset[row] for row in rows]
        lowres = torch.from_numpy(views).permute(0, 3, 1, 2)
        plain = moments(self.autoencoder, lowres).cpu()
        arrays = {"z": sums.add(plain, self.layout.dtype, z_dim=self.autoencoder.config.z_dim)}
        if self.config.flip:
            arrays["z_flip"] = sums.stored(moments(self.autoencoder, lowres.flip(3)).cpu(), self.layout.dtype)
        if self.conditions is not None:
            captions, embeddings = self.conditions.of(facts)
            facts = [{**fact, "caption": caption} for fact, caption in zip(facts, captions, strict=True)]
            if embeddings is not None:
                arrays["context"] = embeddings
        return facts, arrays


@torch.no_grad()
def moments(autoencoder: Autoencoder, lowres: Tensor) -> Tensor:
    """Views (B, 3, L, L) uint8 -> z before quantization, or means and log-variances: (B, M, l, l) float32 on its device."""
    device = next(autoencoder.parameters()).device
    return autoencoder.moments(lowres.to(device, non_blocking=True).float() / 127.5 - 1).float()


class Sums:
    """Sums over all numbers of z (of a Gaussian latent: of its samples), and what rounding to the stored type lost."""

    def __init__(self) -> None:
        self.count, self.total, self.squares = 0, 0.0, 0.0
        self.lost_most, self.lost_squares, self.stored_squares = 0.0, 0.0, 0.0

    def add(self, values: Tensor, dtype: str, *, z_dim: int) -> np.ndarray:
        """Count in (B, M, l, l) float32; the array as it is stored."""
        exact = values.numpy().astype(np.float64)
        mean, noise = exact[:, :z_dim], 0.0
        if exact.shape[1] == 2 * z_dim:
            noise = float(np.exp(exact[:, z_dim:].clip(-30, 20)).sum())
        self.count += mean.size
        self.total += float(mean.sum())
        self.squares += float(np.square(mean).sum()) + noise
        return self.stored(values, dtype)

    def stored(self, values: Tensor, dtype: str) -> np.ndarray:
        """The array as it is stored; counts what that loses alone."""
        exact = values.numpy().astype(np.float64)
        stored = values.numpy().astype(dtype)
        lost = stored.astype(np.float64) - exact
        self.lost_most = max(self.lost_most, float(np.abs(lost).max()))
        self.lost_squares += float(np.square(lost).sum())
        self.stored_squares += float(np.square(exact).sum())
        return stored

    def asdict(self) -> dict[str, float]:
        return {name: value for name, value in vars(self).items()}


def merged(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Of all units: `scale`, the standard deviation of z, and `rounding`."""
    total = {name: sum(record["sums"][name] for record in records) for name in vars(Sums()) if name != "lost_most"}
    count = max(total["count"], 1)
    variance = total["squares"] / count - (total["total"] / count) ** 2
    return {"scale": float(np.sqrt(max(variance, 0.0))), "mean": total["total"] / count,
            "rounding": {"most": max((record["sums"]["lost_most"] for record in records), default=0.0),
                         "relative": float(np.sqrt(total["lost_squares"] / max(total["stored_squares"], 1e-300)))}}
