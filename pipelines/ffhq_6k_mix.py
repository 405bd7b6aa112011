"""The photographs of the paper's 6K-Mix, made from FFHQ at 1024²; presets.ffhq_6k_mix trains on them.

Rule of the published datasets/ffhq.py: file names sorted as strings; all 70,000 at 256 are the low-resolution set, the
first 6,000 the other: of these the first 5,000 at sides that rise from 512 to 1024, the last 1,000 as they are. Resizing is
Lanczos; the published code resizes when it reads, this once, so that files are 8-bit after it as there.
"""

import logging
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from typing import NamedTuple

from PIL import Image

from infd import storage
from infd.data import photo
from infd.errors import DatasetError, PhotoError
from infd.storage import ObjectInfo

logger = logging.getLogger(__name__)

NATIVE_PX, LOW_PX, LEAST_PX = 1024, 256, 512


@dataclass(frozen=True)
class Subset:
    """How many photographs there are, are in the mixed set, and are resized there."""

    photos: int = 70_000
    mixed: int = 6_000
    ramp: int = 5_000

    def side(self, index: int) -> int:
        """Pixels of photograph `index` of the mixed set; halves round to even."""
        rise = NATIVE_PX - LEAST_PX
        return LEAST_PX + round(rise * index / (self.ramp - 1)) if index < self.ramp else NATIVE_PX


class Task(NamedTuple):
    """One file to write: the photograph of `info` at `side`."""

    info: ObjectInfo
    side: int
    out: str


def prepare(images: str, out: str, *, subset: Subset = Subset(), processes: int | None = None) -> int:
    """Write OUT/lr/NAME.png and OUT/hr/NAME.png; those that are there stay. Returns how many were written.

    Raises DatasetError where `images` does not hold `subset.photos` files, or one is no photograph of 1024².
    """
    images, out = storage.absolute(images), storage.absolute(out)
    files = sorted(storage.list_objects(images), key=lambda info: info.uri.rsplit("/", 1)[-1])
    if len(files) != subset.photos:
        raise DatasetError(f"{images}: {len(files)} files; expected the {subset.photos} of FFHQ at 1024 px and nothing else")
    done = {info.uri for info in storage.list_objects(out)}
    todo = [task for task in tasks(files, out, subset) if task.out not in done]
    logger.info("%s: %d files to write, %d are there", out, len(todo), len(done))
    with ProcessPoolExecutor(processes) as pool:
        for number, _ in enumerate(pool.map(write, todo, chunksize=16), 1):
            if number % 1000 == 0:
                logger.info("%s: %d of %d", out, number, len(todo))
    return len(todo)


def tasks(files: list[ObjectInfo], out: str, subset: Subset) -> Iterator[Task]:
    """Every file of both sets."""
    for index, info in enumerate(files):
        name = info.uri.rsplit("/", 1)[-1].rsplit(".", 1)[0] + ".png"
        yield Task(info, LOW_PX, storage.join(out, "lr", name))
        if index < subset.mixed:
            yield Task(info, subset.side(index), storage.join(out, "hr", name))


def write(task: Task) -> None:
    """Read, resize, encode without loss, put."""
    try:
        image = photo.decode(storage.read_object(task.info), max_pixels=NATIVE_PX ** 2, min_side_px=NATIVE_PX)
    except PhotoError as error:
        raise DatasetError(f"{task.info.uri}: {error.reason} {error.detail}; a photograph of {NATIVE_PX} x {NATIVE_PX} pixels "
                           "was expected; fetch it again") from error
    if image.size != (NATIVE_PX, NATIVE_PX):
        raise DatasetError(f"{task.info.uri}: {image.width} x {image.height} pixels; expected {NATIVE_PX} x {NATIVE_PX}")
    if task.side != NATIVE_PX:
        image = image.resize((task.side, task.side), Image.Resampling.LANCZOS)
    buffer = BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    storage.put_atomic(task.out, buffer.getvalue())
