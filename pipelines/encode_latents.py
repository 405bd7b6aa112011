"""The photographs of a snapshot through a trained encoder, on Ray: an actor a GPU or a core, a shard of photos at a time."""

import functools
import logging
import time
from typing import Any, cast

import torch

from infd import errors, storage
from infd.config import LatentConfig
from infd.config_form import flat, unflat
from infd.data.conditions import Conditions
from infd.data.latents import MANIFEST, open_latents, unit_done
from infd.data.snapshot import open_dataset
from infd.errors import InfdError
from infd.lease import driver_uri, held
from infd.training import encode
from pipelines import cluster, logs
from pipelines.generate import address_of
from pipelines.ingest import quiet

logger = logging.getLogger(__name__)


def encode_latents(
    dataset: str, autoencoder: str, *, config: LatentConfig, out: str = "", conditions: str = "", workers: int = 0,
    device: str = "auto", ray: bool = True,
) -> str:
    """Encode what is not encoded yet; the address of the latents. The same call again goes on, or finds them whole.

    `workers`: actors; 0: one a GPU, or one a core. Raises DatasetError where `out` holds latents of something else.
    """
    table = Conditions(conditions) if conditions else None
    pins = encode.pins_of(storage.absolute(dataset), address_of(autoencoder), config, table.sha256 if table else None)
    uri = storage.absolute(out) if out else encode.default_uri(pins, config)
    with held(driver_uri(uri), what=f"latents {uri}"):
        began = time.monotonic()
        pins = encode.begin(uri, pins)
        if storage.exists(storage.join(uri, MANIFEST)):
            logger.info("latents %s: all there already: %s", uri, told(uri))
            return uri
        shards = open_dataset(pins.snapshot).manifest.shards
        left = [index for index, entry in enumerate(shards) if unit_done(uri, entry) is None]
        logger.info("latents %s: %d of %d shards of %s to encode with %s", uri, len(left), len(shards), pins.snapshot,
                    pins.checkpoint)
        settings = {"uri": uri, "snapshot": pins.snapshot, "config": flat(config), "conditions": table.uri if table else ""}
        photos = run_on_ray(settings, left, workers, device) if ray else run_here(settings, left, device)
        encode.finish(uri, pins)
        logger.info("latents %s: %s; %d photos encoded in %.0f s", uri, told(uri), photos, time.monotonic() - began)
    return uri


def told(uri: str) -> str:
    """What a person wants to know of finished latents."""
    latents = open_latents(uri)
    info = latents.info
    size = sum(entry.bytes for entry in latents.manifest.shards)
    views = "views and their mirror images" if info["flip"] else "views"
    lost = ""
    if info["dtype"] != "float32":
        lost = f", rounded by {info['rounding']['relative']:.1e} of their size, at most {info['rounding']['most']:.1e}"
    return (f"{len(latents):,} photos, {views}, {'x'.join(map(str, info['shape']))} {info['dtype']}, "
            f"{size / 2**20:,.1f} MiB{lost}; standard deviation {info['scale']:.3g}")


class Unit:
    """What an actor does: it loads the autoencoder once."""

    def __init__(self, settings: dict[str, Any], device: str) -> None:
        self.settings, self.device = settings, device

    @functools.cached_property
    def encoder(self) -> encode.Encoder:
        settings = self.settings
        table = Conditions(settings["conditions"]) if settings["conditions"] else None
        return encode.Encoder.open(settings["uri"], settings["snapshot"], unflat(LatentConfig, settings["config"]),
                                   device=self.device, conditions=table)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """One shard, on one thread of a CPU; an InfdError is a row, because Ray keeps only the text of an error."""
        logs.to_stderr()
        if self.device == "cpu":
            torch.set_num_threads(1)
        try:
            return {"rows": self.encoder.unit(int(row["shard"]))["rows"], "kind": "", "error": ""}
        except InfdError as error:
            return {"rows": 0, "kind": type(error).__name__, "error": str(error)}


def run_here(settings: dict[str, Any], shards: list[int], device: str) -> int:
    """All units in this process; how many photos."""
    cuda = device == "gpu" or (device == "auto" and torch.cuda.is_available())
    unit = Unit(settings, "cuda" if cuda else "cpu")
    return sum(unit.encoder.unit(index)["rows"] for index in shards)


def run_on_ray(settings: dict[str, Any], shards: list[int], workers: int, device: str) -> int:
    """The units on the cluster's actors; how many photos. Raises the InfdError of a unit that failed."""
    if not shards:
        return 0
    with cluster.connect(env=cluster.passed_on()):
        import ray
        from ray.data import ActorPoolStrategy

        quiet()
        size, on_gpu = cluster.actors(device=device, workers=workers, tasks=len(shards))
        rows = ray.data.from_items([{"shard": index} for index in shards], override_num_blocks=len(shards)).map(
            cast(Any, Unit), fn_constructor_args=(settings, "cuda" if on_gpu else "cpu"), num_gpus=1 if on_gpu else 0,
            num_cpus=0 if on_gpu else 1, compute=ActorPoolStrategy(size=size))
        photos = done = 0
        for row in rows.iter_rows():
            if row["kind"]:
                raise getattr(errors, row["kind"], errors.StorageError)(row["error"])
            photos, done = photos + row["rows"], done + 1
            logger.info("%d of %d shards, %d photos", done, len(shards), photos)
        return photos
