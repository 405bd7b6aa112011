"""Seeds become images, on Ray: each worker loads the model once; images that are there already are kept.

    OUT/run.json                      what was asked, written first; the same settings again go on
    OUT/seed-00000007-3000x2000.png   one a seed and size; its metadata name seed, model, sampler and sizes
    OUT/small/seed-….png              the same, at most 256 px a side, written first
    OUT/sheet.png                     the first of these, on one page
"""

import functools
import io
import json
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from PIL import Image

from infd import checkpoint, errors, storage
from infd.checkpoint import Checkpoint
from infd.compat import plain_float32
from infd.config import DiffusionConfig, SampleConfig, require
from infd.config_form import flat, unflat
from infd.errors import ConfigError, InfdError, PreconditionFailed
from infd.generation.load import config_of, denoiser_config
from infd.generation.model import Model, default_sampler, load_model, require_sampling
from infd.generation.reconstruct import PANEL, Panel, sheet, to_image
from infd.generation.registry import resolve
from infd.generation.render import Picture, Progress
from infd.models.boxes import Box
from pipelines import cluster, logs
from pipelines.ingest import quiet

logger = logging.getLogger(__name__)

SHEET_IMAGES, SHEET_COLUMNS = 64, 8
UNIT_SEEDS = 8
"""Seeds that are sampled together, at most: a unit of work."""
EVERY_S = 15.0
"""Between two lines of a long render."""


class Size(NamedTuple):
    """Of an image, pixels."""

    width: int
    height: int

    @classmethod
    def of(cls, text: str) -> "Size":
        """From "1024" (a square) or "3000x2000" (width x height). Raises ConfigError."""
        parts = text.lower().split("x")
        if len(parts) > 2 or not all(part.isascii() and part.isdigit() and int(part) for part in parts):
            raise ConfigError(f"size={text}: expected a number of pixels, or WIDTHxHEIGHT as 3000x2000")
        return cls(int(parts[0]), int(parts[-1]))

    def __str__(self) -> str:
        return f"{self.width}x{self.height}"

    def within(self, side: int) -> "Size":
        """The same shape with the longer side at most `side`."""
        share = min(1.0, side / max(self))
        return Size(max(1, round(self.width * share)), max(1, round(self.height * share)))


class Zoom(NamedTuple):
    """A part of the image: its top left corner and its side, as shares of the image's height and width."""

    y: float
    x: float
    side: float

    @classmethod
    def of(cls, text: str) -> "Zoom":
        """From "y,x,side", as "0.25,0.5,0.1". Raises ConfigError."""
        try:
            y, x, side = (float(part) for part in text.split(","))
        except ValueError as error:
            raise ConfigError(f"zoom={text}: expected y,x,side as shares of the image, such as 0.25,0.5,0.1") from error
        require(side > 0 and min(y, x) >= 0 and max(y, x) + side <= 1, "zoom", text,
                "must lie inside the image: y and x at least 0, side above 0, y + side and x + side at most 1")
        return cls(y, x, side)

    def box(self, size: Size) -> tuple[Size, Box]:
        """(the virtual image, the box of it) whose pixels are `size` pixels of this part."""
        virtual = Size(round(size.width / self.side), round(size.height / self.side))
        y, x = round(self.y * virtual.height), round(self.x * virtual.width)
        return virtual, Box(min(y, virtual.height - size.height), min(x, virtual.width - size.width), size.height, size.width)


# ---------------------------------------------------------------- the job


def generate(
    uri: str, *, seeds: Sequence[int], sizes: Sequence[Size], out: str, config: SampleConfig, zoom: Zoom | None = None,
    workers: int = 0, device: str = "auto", ray: bool = True,
) -> str:
    """Write the images of `seeds` at `sizes` below `out`, and a sheet of them; the sheet's address.

    Law: image k of seed s is the same whatever is generated beside it, and on how many workers. Raises ConfigError where
    `out` holds images of something else.
    """
    require(bool(seeds) and bool(sizes), "count, size", (len(seeds), len(sizes)), "at least one seed and one size")
    out = storage.absolute(out)
    config = replace(config, context=storage.absolute(config.context) if config.context else "")
    found = checkpoint.load(address_of(uri))
    require_heard(found, config)                                       # before any worker starts, or anything is written
    record = {"checkpoint": found.uri, "sha256": found.files[checkpoint.MODEL]["sha256"], "config": flat(config),
              "zoom": list(zoom) if zoom else None}
    claim(out, record)
    left = missing(out, seeds, sizes, zoom)
    logger.info("%s: %d seeds at %s; %d images to make", out, len(seeds), ", ".join(map(str, sizes)),
                sum(len(wanted) * len(some) for wanted, some in left.items()))
    settings = {**record, "out": out}
    if ray and left:
        run_on_ray(settings, left, workers, device)
    elif left:
        worker = Worker(settings, cuda_or_cpu(device))
        for task in tasks_of(left, workers=1):
            worker.work(task)
    return write_sheet(out, seeds, sizes[0], zoom)


def require_heard(found: Checkpoint, config: SampleConfig) -> None:
    """Raise an InfdError where the checkpoint is of stage one, or cannot do what is wished."""
    denoiser, diffusion = denoiser_config(found), config_of(found, DiffusionConfig, "diffusion.")
    require_sampling(denoiser, diffusion, found.meta["groups"], steps=config.steps, guidance=config.guidance,
                     sampler=default_sampler(diffusion) if config.sampler == "auto" else config.sampler,
                     group=config.group, context=bool(config.context))


def address_of(uri: str) -> str:
    """A checkpoint's own address, of use on every machine."""
    return resolve(uri) if uri.startswith("models:/") else storage.absolute(uri)


def cuda_or_cpu(device: str) -> str:
    """torch's name of a device for this process."""
    return "cuda" if device == "gpu" or (device == "auto" and torch.cuda.is_available()) else "cpu"


def claim(out: str, record: dict[str, Any]) -> None:
    """Write run.json, or find it the same. Raises ConfigError naming what differs."""
    where = storage.join(out, "run.json")
    try:
        storage.put_if_absent(where, json.dumps(record, indent=1, sort_keys=True).encode())
    except PreconditionFailed:
        before = json.loads(storage.read_bytes(where))
        flat_before, flat_now = ({**told["config"], **{name: told[name] for name in ("sha256", "zoom")}}
                                 for told in (before, json.loads(json.dumps(record))))
        changes = [f"{name} was {flat_before.get(name)} and is {value}" for name, value in flat_now.items()
                   if flat_before.get(name) != value]
        if changes:
            raise ConfigError(f"out={out}: images of other settings are there ({', '.join(changes)}); name another "
                              "--out") from None


def name_of(seed: int, size: Size, zoom: Zoom | None) -> str:
    part = f"-zoom-{zoom.y:g}-{zoom.x:g}-{zoom.side:g}" if zoom else ""
    return f"seed-{seed:08d}{part}-{size}.png"


def missing(out: str, seeds: Sequence[int], sizes: Sequence[Size], zoom: Zoom | None) -> dict[tuple[Size, ...], list[int]]:
    """Sizes that are not there yet, and the seeds of which they are not."""
    there = {info.uri for info in storage.list_objects(out)}
    wanted: dict[tuple[Size, ...], list[int]] = {}
    for seed in seeds:
        if left := tuple(size for size in sizes if storage.join(out, name_of(seed, size, zoom)) not in there):
            wanted.setdefault(left, []).append(seed)
    return wanted


def tasks_of(left: dict[tuple[Size, ...], list[int]], *, workers: int) -> list[dict[str, Any]]:
    """Units of work: seeds that are sampled together, so many that every worker has some."""
    return [{"seeds": seeds[i:i + share], "sizes": [str(size) for size in sizes]} for sizes, seeds in left.items()
            for share in [max(1, min(UNIT_SEEDS, -(-len(seeds) // workers)))] for i in range(0, len(seeds), share)]


def silent(done: int, total: int) -> None:
    """For small renders."""


class Worker:
    """Loads the model once and makes the images of units."""

    def __init__(self, settings: dict[str, Any], device: str) -> None:
        self.settings, self.config, self.device = settings, unflat(SampleConfig, settings["config"]), device
        self.zoom = Zoom(*settings["zoom"]) if settings["zoom"] else None

    @functools.cached_property
    def model(self) -> Model:
        plain_float32()
        return load_model(self.settings["checkpoint"], device=self.device, weights=self.config.weights)

    def __call__(self, task: dict[str, Any]) -> dict[str, Any]:
        """A unit; an InfdError is a row, because Ray keeps only the text of an error."""
        logs.to_stderr()
        try:
            return {"images": self.work(task), "kind": "", "error": ""}
        except InfdError as error:
            return {"images": 0, "kind": type(error).__name__, "error": str(error)}

    def work(self, task: dict[str, Any]) -> int:
        """Sample the seeds together, render each at each size; how many images."""
        seeds, sizes = [int(seed) for seed in task["seeds"]], [Size.of(size) for size in task["sizes"]]
        z = sampled(self.model, seeds, self.config)
        for seed, latent in zip(seeds, z.split(1), strict=True):
            field = self.model.field(latent)
            for size in sizes:
                name, told = name_of(seed, size, self.zoom), about(self.settings, seed, size, self.zoom)
                self.write(field, storage.join(self.settings["out"], "small", name), size.within(PANEL), told)
                self.write(field, storage.join(self.settings["out"], name), size, told, progress=Logged(name))
        return len(seeds) * len(sizes)

    def write(self, field: Picture, uri: str, size: Size, told: dict[str, str], progress: Progress = silent) -> None:
        """The image, or a part of it.

        For a part the norms take the statistics that the whole image has at `size`, or in the mode window those around the
        part: it looks as the whole does, and costs only what it shows.
        """
        mode = self.config.mode
        if self.zoom is None:
            field.save(uri, size.width, size.height, statistics=mode, metadata=told, progress=progress)
            return
        virtual, box = self.zoom.box(size)
        look = field.statistics(size.height, size.width) if mode == "whole" else mode
        field.save(uri, virtual.width, virtual.height, box=box, statistics=look, metadata=told, progress=progress)


class Logged:
    """Tells of a long render at most every EVERY_S."""

    def __init__(self, name: str) -> None:
        self.name, self.told_s = name, time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        if time.monotonic() - self.told_s >= EVERY_S:
            logger.info("%s: %.0f%%", self.name, 100 * done / total)
            self.told_s = time.monotonic()


def sampled(model: Model, seeds: Sequence[int], config: SampleConfig) -> torch.Tensor:
    """The latents of some seeds."""
    return model.latents(seeds, steps=config.steps, sampler=None if config.sampler == "auto" else config.sampler,
                         eta=config.eta, guidance=config.guidance, group=config.group,
                         context=embedding(config.context) if config.context else None)


def embedding(uri: str) -> torch.Tensor:
    """The (S, K) of a .npy file. Raises ConfigError where it is none."""
    try:
        found = np.load(io.BytesIO(storage.read_bytes(uri)), allow_pickle=False)
    except ValueError as error:
        raise ConfigError(f"context={uri}: {error}; expected a .npy file of S x K numbers") from error
    require(found.ndim == 2, "context", uri, f"expected S x K numbers; the file holds {found.shape}")
    return torch.from_numpy(found.astype(np.float32))


def about(settings: dict[str, Any], seed: int, size: Size, zoom: Zoom | None) -> dict[str, str]:
    """What an image says of itself."""
    return {"seed": str(seed), "model": settings["checkpoint"], "model_sha256": settings["sha256"], "size": str(size),
            "zoom": json.dumps(list(zoom)) if zoom else "", "config": json.dumps(settings["config"], sort_keys=True)}


def run_on_ray(settings: dict[str, Any], left: dict[tuple[Size, ...], list[int]], workers: int, device: str) -> None:
    """What is missing on the cluster's workers. Raises the InfdError of a unit that failed."""
    with cluster.connect(env=cluster.passed_on()):
        import ray
        from ray.data import ActorPoolStrategy

        quiet()
        size, on_gpu = cluster.actors(device=device, workers=workers, tasks=sum(map(len, left.values())))
        tasks = tasks_of(left, workers=size)
        rows = ray.data.from_items(tasks, override_num_blocks=len(tasks)).map(
            cast(Any, Worker), fn_constructor_args=(settings, "cuda" if on_gpu else "cpu"), num_gpus=1 if on_gpu else 0,
            num_cpus=0 if on_gpu else 1, compute=ActorPoolStrategy(size=size))
        done = 0
        for row in rows.iter_rows():
            if row["kind"]:
                raise getattr(errors, row["kind"], errors.StorageError)(row["error"])
            done += row["images"]
            logger.info("%d images made", done)


# ---------------------------------------------------------------- pages


def write_sheet(out: str, seeds: Sequence[int], size: Size, zoom: Zoom | None) -> str:
    """The first images, small, on one page; its address."""
    panels, part = [], f", from {zoom.y:g},{zoom.x:g} a side of {zoom.side:g}" if zoom else ""
    for seed in seeds[:SHEET_IMAGES]:
        with Image.open(io.BytesIO(storage.read_bytes(storage.join(out, "small", name_of(seed, size, zoom))))) as image:
            panels.append(Panel(squared(image.convert("RGB")), f"seed {seed} at {size}{part}"))
    return put_png(sheet(in_rows(panels)), storage.join(out, "sheet.png"))


def grid(uri: str, *, seeds: Sequence[int], out: str, config: SampleConfig, device: str = "auto") -> str:
    """A quick look: one page of small images, in this process; its address."""
    plain_float32()
    model = load_model(uri, device=cuda_or_cpu(device), weights=config.weights)
    panels = []
    for some in batches(seeds):
        for seed, latent in zip(some, sampled(model, some, config).split(1), strict=True):
            panels.append(Panel(to_image(model.field(latent).render(PANEL, PANEL, statistics=config.mode)), f"seed {seed}"))
        logger.info("%d of %d seeds", len(panels), len(seeds))
    return put_png(sheet(in_rows(panels)), storage.join(storage.absolute(out), "grid.png"))


def batches(seeds: Sequence[int]) -> Iterator[list[int]]:
    return (list(seeds[i:i + UNIT_SEEDS]) for i in range(0, len(seeds), UNIT_SEEDS))


def in_rows(panels: Sequence[Panel]) -> list[Sequence[Panel]]:
    return [panels[i:i + SHEET_COLUMNS] for i in range(0, len(panels), SHEET_COLUMNS)]


def squared(image: Image.Image) -> Image.Image:
    """The whole image on a white square of PANEL: brought down, or grown to a whole multiple with its pixels to be seen."""
    image = image.resize([side * max(1, PANEL // max(image.size)) for side in image.size], Image.Resampling.NEAREST)
    image.thumbnail((PANEL, PANEL), Image.Resampling.LANCZOS)
    page = Image.new("RGB", (PANEL, PANEL), "white")
    page.paste(image, ((PANEL - image.width) // 2, (PANEL - image.height) // 2))
    return page


def put_png(image: Image.Image, uri: str) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    storage.put_atomic(uri, buffer.getvalue())
    return uri
