"""What a task of an ingest takes of memory for one photo, from its file to its shard, as docs/datasets.md states it."""

import json
import sys
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
from data import photographs
from data.children import peak_bytes, started
from pictures import encoded
from PIL import Image

from infd import config_form, storage
from infd.config import IngestConfig
from infd.data import shards
from pipelines import ingest

TASK_BYTES = 300_000_000
"""Python and its libraries."""


def ingest_units(source: str, dataset: str) -> None:
    """What the subprocess does: each file of `source` as a unit of its own, and how its peak stands after it."""
    for number, info in enumerate(storage.list_objects(source)):
        done = ingest.run_unit(ingest.task_of(number, [info]), run_uri=f"{dataset}/runs/x", dataset=dataset,
                               config=config_form.flat(IngestConfig()), group="")
        print(json.dumps({"peak": peak_bytes(), **done}), flush=True)


def task_bytes(folder: Path, data: bytes, small: bytes) -> tuple[int, int]:
    """The peak of a task that ingests the file `small`, and of one that ingests `data` after it."""
    (folder / "photos").mkdir()
    for name, content in (("1", small), ("2", data)):
        (folder / "photos" / name).write_bytes(content)
    worker = started(__file__, str(folder / "photos"), str(folder / "ds"))
    before, after = (json.loads(line) for line in worker.communicate()[0].splitlines())
    assert (before["rejected"], after["rejected"]) == (0, 0)
    return before["peak"], after["peak"]


def jpeg(pixels: np.ndarray) -> bytes:
    return imagecodecs.jpeg8_encode(pixels, level=90)


def progressive(pixels: np.ndarray) -> bytes:
    return encoded(Image.fromarray(pixels), "JPEG", quality=90, progressive=True, subsampling=0)


def png(pixels: np.ndarray) -> bytes:
    return encoded(Image.fromarray(pixels), compress_level=1)


def webp(pixels: np.ndarray) -> bytes:
    return imagecodecs.webp_encode(pixels, level=75, method=0)


def avif(pixels: np.ndarray) -> bytes:
    return imagecodecs.avif_encode(pixels, level=60, speed=10, numthreads=1)


def tiff(pixels: np.ndarray) -> bytes:
    return imagecodecs.tiff_encode(pixels, compression="none", rowsperstrip=64)


def one_strip(pixels: np.ndarray) -> bytes:
    return imagecodecs.tiff_encode(pixels, compression="deflate", rowsperstrip=len(pixels), predictor=2)


def deep_avif(pixels: np.ndarray) -> bytes:
    return imagecodecs.avif_encode(pixels.astype(np.uint16) << 2, bitspersample=10, level=60, speed=10, numthreads=1)


BYTES_PER_PIXEL = {jpeg: 8, progressive: 10.5, png: 8, webp: 16.5, avif: 8, deep_avif: 19, tiff: 8, one_strip: 11.5}
"""Beside the file. 7 of them halve level 0: its 4, 2 between the passes of the filter, 1 of level 1; then the tiles."""


@pytest.mark.slow
@pytest.mark.parametrize("make", BYTES_PER_PIXEL)
def test_law_a_task_takes_a_few_bytes_a_pixel(tmp_path, make):
    pixels = np.asarray(photographs.mosaic(5000, 4000))
    data = make(pixels)
    before, after = task_bytes(tmp_path, data, make(pixels[:400, :600]))
    each_px = (after - before - len(data)) / 20_000_000
    print(f"\n{make.__name__}: {each_px:.1f} bytes a pixel above {before >> 20} MB")
    assert each_px < BYTES_PER_PIXEL[make]
    assert before < TASK_BYTES


@pytest.mark.slow
def test_law_a_task_ingests_a_jpeg_of_216_megapixels_in_bounded_memory(tmp_path):
    """12,000 x 18,000 px: at most 2.1 GB in all."""
    pixels = np.asarray(photographs.mosaic(12_000, 18_000))
    data = jpeg(pixels)
    before, after = task_bytes(tmp_path, data, jpeg(pixels[:400, :600]))
    print(f"\n{before >> 20} MB before, {after >> 20} MB after")
    assert after < TASK_BYTES + len(data) + BYTES_PER_PIXEL[jpeg] * 216_000_000
    stored = [shards.Shard(str(path)).facts(0) for path in (tmp_path / "ds").rglob("*.arrow")]
    assert sorted(row["width"] for row in stored) == [600, 12_000]


if __name__ == "__main__":
    ingest_units(*sys.argv[1:])
