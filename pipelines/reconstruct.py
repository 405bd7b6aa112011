"""Image files through a checkpoint's autoencoder, as PNGs and one sheet."""

import io
import logging
import time
from collections.abc import Iterator, Sequence

from PIL import Image

from infd import checkpoint, storage
from infd.config import IngestConfig
from infd.data.photo import REASONS, decode
from infd.errors import ConfigError, PhotoError
from infd.generation.load import load_autoencoder
from infd.generation.reconstruct import compare, deep_zoom, reconstruct, sheet, subject, view_of
from infd.generation.registry import resolve
from pipelines.progress import duration

logger = logging.getLogger(__name__)

SHEET_NATIVE_PX = 1024


def reconstruct_files(uri: str, images: Sequence[str], *, sizes: Sequence[int], out: str,
                      device: str = "cpu") -> Iterator[str]:
    """Render each image at each size; yields the addresses of the pictures as they are written.

    Raises PhotoError or StorageError naming the image that cannot be read, CheckpointError for the checkpoint,
    ConfigError where two images would be written under one name.
    """
    if not images or not sizes or min(sizes) < 1:
        raise ConfigError(f"images={list(images)}, sizes={list(sizes)}: at least one of each, sizes above 0")
    require_own_stems(images)
    uri = resolve(uri)
    autoencoder = load_autoencoder(uri, device=device)
    lowres_px = int(checkpoint.load(uri).meta["config"]["crop.lowres_px"])
    rows = []
    for address in images:
        image = photo_at(address, min_side_px=lowres_px)
        name = stem(address)
        began = time.monotonic()
        for size, render in reconstruct(autoencoder, image, sizes, lowres_px=lowres_px):
            logger.info("%s: rendered at %d in %s", address, size, duration(time.monotonic() - began))
            yield write_png(render, storage.join(out, f"{name}-{size}.png"))
            began = time.monotonic()
        seen = subject(autoencoder, view_of(image), native=min(image.size), lowres_px=lowres_px)
        rows.append([*compare(seen, most_px=SHEET_NATIVE_PX), *deep_zoom(seen)])
    yield write_png(sheet(rows), storage.join(out, "sheet.png"))


def photo_at(address: str, *, min_side_px: int) -> Image.Image:
    """The photo at `address`. Raises PhotoError whose message starts with the address, StorageError."""
    data = storage.read_bytes(address)
    try:
        return decode(data, max_pixels=IngestConfig().max_pixels, min_side_px=min_side_px)
    except PhotoError as error:
        raise PhotoError(error.reason, error.detail or REASONS[error.reason], address=address) from error


def stem(address: str) -> str:
    """The file's name without its folder and its extension; the pictures made of it are named by it."""
    return address.rstrip("/").rsplit("/", 1)[-1].rsplit(".", 1)[0]


def require_own_stems(images: Sequence[str]) -> None:
    """Raise ConfigError where the pictures of two images would overwrite each other."""
    seen: dict[str, str] = {}
    for address in images:
        if stem(address) in seen:
            raise ConfigError(f"images: {seen[stem(address)]} and {address} would both be written as "
                              f"{stem(address)}-SIZE.png; expected names that differ; run them into two folders")
        seen[stem(address)] = address


def write_png(image: Image.Image, uri: str) -> str:
    """Write `image` whole or not at all; returns `uri`."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    storage.put_atomic(uri, buffer.getvalue())
    return uri
