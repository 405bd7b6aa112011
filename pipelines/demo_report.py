"""The demo's report: one self-contained HTML page."""

import base64
import io
import os
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
from jinja2 import Environment, FileSystemLoader, select_autoescape
from PIL import Image

from infd import checkpoint
from infd.config import AutoencoderTrainingConfig, DiffusionTrainingConfig
from infd.config_form import unflat
from infd.data.snapshot import Dataset
from infd.generation.reconstruct import PANEL, ZOOM, Panel
from infd.training.plan import plan_autoencoder, plan_denoiser
from pipelines.demo_samples import ZOOMS, Drawn
from pipelines.progress import duration

STORED_PX = 1024
"""Pictures larger than this are stored in the page reduced to it."""


@dataclass(frozen=True)
class ShownPhoto:
    """One row of the report."""

    name: str
    held_out: bool
    panels: list[Panel]


@dataclass(frozen=True)
class Provenance:
    """Where a photograph is from."""

    name: str
    author: str
    license: str
    package: str


@dataclass(frozen=True)
class Curve:
    """One metric over training."""

    name: str
    steps: list[int]
    values: list[float]


@dataclass(frozen=True)
class DemoRecord:
    """All that the page shows."""

    run: str
    dataset: Dataset
    photos: list[ShownPhoto]
    drawn: Drawn
    provenance: list[Provenance]
    seconds: dict[str, float]
    curves: list[Curve]
    more_curves: list[Curve]
    places: list[tuple[str, str, bool]]
    rejected: dict[str, int]
    notice: str = ""
    wait_fraction: float | None = None


def write_report(record: DemoRecord, path: Path) -> Path:
    """Write the page whole; returns `path`."""
    found = checkpoint.load(f"{record.run}/checkpoints/last")
    config = unflat(AutoencoderTrainingConfig, found.meta["config"])
    counts = plan_autoencoder(config, workers=1).parameters
    parameters = sum(count for name, count in counts.items() if name != "discriminator")
    pixels = int((record.dataset.manifest.short_side.astype(np.int64) * record.dataset.manifest.long_side).sum())
    values = {
        "photos": [{"name": photo.name, "kind": "never seen in training" if photo.held_out else "seen in training",
                    "panels": shown(photo.panels)}
                   for photo in record.photos],
        "grid": shown(record.drawn.grid),
        "drawn": [{"title": title, "panels": shown(panels)} for title, panels in record.drawn.rows],
        "denoiser": denoiser_line(record), "largest_px": PANEL * ZOOMS[-1],
        "more_plots": [{"alt": name, "src": plot} for name, plot in plots(record.more_curves, "The denoiser's loss")],
        "columns": max(len(photo.panels) for photo in record.photos),
        "lowres_px": config.crop.lowres_px, "stored_px": STORED_PX, "zoom_px": PANEL * ZOOM,
        "when": time.strftime("%Y-%m-%d %H:%M"), "machine": machine_line(), "notice": record.notice,
        "parameters": f"{parameters / 1e6:.2f} M",
        "training_time": duration(record.seconds.get("train", 0.0)),
        "facts": [
            (str(len(record.dataset)), "photographs in the dataset"), (f"{pixels / 1e6:.0f} Mpx", "their pixels"),
            (f"{found.step:,}", "training steps"), (f"{mean_psnr(record.photos):.1f} dB", f"mean PSNR of renders at {PANEL}"),
            (duration(sum(record.seconds.values())), "from start to the renders"),
        ],
        "plots": [{"alt": name, "src": plot} for name, plot in plots(record.curves)],
        "times": time_rows(record.seconds), "wait_note": wait_note(record.wait_fraction),
        "snapshot": record.dataset.snapshot_uri, "dataset_line": dataset_line(record),
        "histogram": histogram(record.dataset), "places": record.places, "provenance": record.provenance,
    }
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent / "templates"),
                              autoescape=select_autoescape(default=True, default_for_string=True))
    partial = path.with_suffix(".partial")
    partial.write_text(environment.get_template("demo.html.j2").render(values), encoding="utf-8")
    os.replace(partial, path)
    return path


def shown(panels: Sequence[Panel]) -> list[dict[str, str]]:
    return [{"label": panel.label, "src": embed(panel.image)} for panel in panels]


def denoiser_line(record: DemoRecord) -> str:
    """What drew the images, in a sentence."""
    meta = checkpoint.load(f"{record.drawn.run}/checkpoints/last").meta
    config = unflat(DiffusionTrainingConfig, meta["config"])
    count = plan_denoiser(config, side=32, workers=1).parameters["denoiser"]
    return (f"A denoiser of {count / 1e6:.2f} M parameters trained for {meta['step']:,} steps "
            f"({duration(record.seconds.get('train the denoiser', 0.0))}) on the latents of the photographs.")


def embed(image: Image.Image) -> str:
    """A picture as a data URI: JPEG of quality 92, at most STORED_PX a side."""
    if max(image.size) > STORED_PX:
        image = image.copy()
        image.thumbnail((STORED_PX, STORED_PX), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=92, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def mean_psnr(photos: Sequence[ShownPhoto]) -> float:
    """Mean over photographs of the PSNR in the label of the render at PANEL."""
    found = [float(panel.label.split(": ")[1].removesuffix(" dB")) for photo in photos for panel in photo.panels
             if panel.label.startswith(f"render {PANEL}:")]
    return float(np.mean(found)) if found else float("nan")


def machine_line() -> str:
    names = ", ".join(f"{name} {version(name)}" for name in ("torch", "ray", "pillow-simd"))
    return f"{os.cpu_count()} CPU cores, Python {platform.python_version()}, {names}"


def time_rows(seconds: dict[str, float]) -> list[dict[str, object]]:
    longest = max(seconds.values(), default=1.0)
    return [{"name": name, "text": duration(value), "percent": round(100 * value / longest)}
            for name, value in seconds.items()]


def wait_note(fraction: float | None) -> str:
    if fraction is None:
        return ""
    return f"While it trained, {100 * fraction:.1f}% of the time was spent waiting for data."


def dataset_line(record: DemoRecord) -> str:
    manifest = record.dataset.manifest
    held_out = int((manifest.split == 1).sum())
    rejected = ", ".join(f"{count} {reason}" for reason, count in sorted(record.rejected.items())) or "none"
    size = sum(shard.bytes for shard in manifest.shards) / 1e6
    return (f"{len(record.dataset)} photographs ({held_out} held out), {len(manifest.shards)} shards, {size:.0f} MB; "
            f"rejected: {rejected}.")


def plots(curves: Sequence[Curve], first: str = "Loss") -> list[tuple[str, str]]:
    """A plot for each group of curves that share an axis."""
    groups = [(first, "loss", ("train/loss", "train/l1", "train/lpips", "val/loss")),
              ("PSNR of patches", "dB", ("train/psnr", "val/psnr")),
              ("Discriminator: mean logits", "logit", ("train/logits_real", "train/logits_fake")),
              ("Speed", "images/s", ("speed/images_per_s",))]
    made = []
    for title, unit, names in groups:
        shown = [curve for curve in curves if curve.name in names and curve.steps]
        if shown:
            made.append((title, figure_of(shown, title, unit)))
    return made


def figure_of(curves: Sequence[Curve], title: str, unit: str) -> str:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.2), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    for curve in curves:
        few = len(curve.steps) < 20
        axes.plot(curve.steps, curve.values, label=curve.name, linewidth=1.4, marker="o" if few else None, markersize=3)
    axes.set(title=title, xlabel="step", ylabel=unit)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=8)
    return svg(figure)


def histogram(dataset: Dataset) -> str:
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    sides = dataset.manifest.short_side
    figure = Figure(figsize=(6.4, 2.8), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    axes.hist(sides, bins=min(24, max(6, len(sides) // 2)), color="#0b5fa5")
    axes.set(title="Short sides of the photographs", xlabel="pixels", ylabel="photographs")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    return svg(figure)


def svg(figure: object) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg")  # pyright: ignore[reportAttributeAccessIssue]
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode()
