"""Where images come from: a folder or bucket prefix of files, or a dataset's snapshot. Sorted, read one at a time.

An image is uint8 (H, W, 3), upright, sRGB. Nothing is ever enlarged. What cannot be read ends the evaluation with an
error that names the file: a figure over fewer images than were named would be another figure.
"""

import hashlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from io import BytesIO
from typing import Literal, NamedTuple, Protocol, TypeVar

import numpy as np
from PIL import Image

from infd import storage
from infd.config import IngestConfig
from infd.data import photo, pyramid
from infd.data.snapshot import Dataset, Manifest, manifest_uri, newest_number, open_dataset, split_address
from infd.errors import PhotoError
from infd.evaluation.errors import EvaluationError
from infd.s3_errors import Unreadable

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".avif", ".heic", ".heif")
"""Files that are images, whatever the case of their letters; others in a folder are passed over."""
SCAN_THREADS = 8
MAX_PIXELS = IngestConfig().max_pixels
Split = Literal["all", "train", "val"]
Resample = Literal["lanczos", "bicubic"]
T = TypeVar("T")


class Sides(NamedTuple):
    """Of an upright image, pixels."""

    width: int
    height: int

    @property
    def short(self) -> int:
        return min(self)


class Source(Protocol):
    """Images by index; `index` counts from 0 in the order of their names."""

    uri: str

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """Unique in the source; what pairs of images are matched by, without its ending."""
        ...

    def address(self, index: int) -> str:
        """For messages."""
        ...

    def sides(self, index: int) -> Sides: ...

    def read(self, index: int) -> np.ndarray:
        """The whole image, uint8 (H, W, 3)."""
        ...

    def patch(self, index: int, *, side: int, y: int, x: int, p: int, offset: float | str = "center") -> np.ndarray:
        """The p × p pixels at (y, x) of the square view resampled to side × side by Lanczos: uint8 (p, p, 3).

        `offset`: place of the view along the long side, 0 to 1, or "center". Raises EvaluationError: side above the short
        side of the image.
        """
        ...

    def fingerprint(self) -> str:
        """sha256 of what the images are, in order. Law: equal content in equal order has one fingerprint."""
        ...

    def describe(self) -> dict[str, object]:
        """For the report: address, kind, number of images, fingerprint."""
        ...


def open_source(uri: str, *, split: Split = "all") -> Source:
    """A dataset where there is one at `uri` or `uri` ends in @N; else the image files under it, at any depth.

    Raises EvaluationError: no image there. `split` chooses photos of a dataset.
    """
    root, number = split_address(uri)
    if number is not None or newest_number(storage.absolute(root)) is not None:
        return DatasetSource(open_dataset(uri), split=split)
    if split != "all":
        raise EvaluationError(f"{uri}: split {split} was asked for; only a dataset has splits; leave it out, or name a dataset")
    return FolderSource(uri)


# ---------------------------------------------------------------- files


class FolderSource:
    """The image files under a folder or bucket prefix, in the order of their names' bytes.

    Each is read twice: once for its sides and its hash, so that a wrong image is told of before any work, and once for
    its pixels. A file that changes in between is an error.
    """

    def __init__(self, uri: str) -> None:
        """Lists. Raises EvaluationError: no image file there; StorageError: the store does not answer."""
        self.uri = storage.absolute(uri)
        found = (info for info in storage.list_objects(self.uri) if info.uri.lower().endswith(SUFFIXES))
        self.files = sorted(found, key=lambda info: os.fsencode(info.uri))
        if not self.files:
            raise EvaluationError(f"{uri}: no image file there, and no dataset, latents or checkpoint; expected one of them, "
                                  f"or files that end in {', '.join(SUFFIXES)}; check the address")

    def __len__(self) -> int:
        return len(self.files)

    def name(self, index: int) -> str:
        return self.files[index].uri[len(self.uri):].lstrip("/")

    def address(self, index: int) -> str:
        return self.files[index].uri

    def sides(self, index: int) -> Sides:
        """From the scan of all files where there was one, else of this file alone: a worker has only some to look at."""
        return self.scan[0][index] if "scan" in self.__dict__ else self.look(index)[0]

    def read(self, index: int) -> np.ndarray:
        """Raises PhotoError naming the file: it cannot be decoded."""
        return np.asarray(self.decode(index, self.bytes_of(index)))

    def patch(self, index: int, *, side: int, y: int, x: int, p: int, offset: float | str = "center") -> np.ndarray:
        image = self.read(index)
        sides = Sides(image.shape[1], image.shape[0])
        require_side(self, index, side, sides)
        view = pyramid.center_view(*sides) if isinstance(offset, str) else pyramid.view_at(*sides, offset)
        square = image[view.y:view.y + view.side, view.x:view.x + view.side]
        return lanczos(square, side)[y:y + p, x:x + p]

    def fingerprint(self) -> str:
        return self.scan[1]

    def describe(self) -> dict[str, object]:
        return {"uri": self.uri, "kind": "files", "images": len(self), "fingerprint": self.fingerprint(),
                "decoding": "upright, sRGB, 8 bits"}

    @cached_property
    def listing(self) -> str:
        """sha256 over the files' addresses, sizes and versions: what was there when the folder was opened."""
        about = "\n".join(f"{info.uri}\0{info.size}\0{info.etag}" for info in self.files)
        return hashlib.sha256(os.fsencode(about)).hexdigest()

    @cached_property
    def scan(self) -> tuple[list[Sides], str]:
        """Sides of every image, and the sha256 over their bytes' sha256s."""
        sides, digest = [], hashlib.sha256()
        for one, sha256 in in_order(self.look, range(len(self)), threads=SCAN_THREADS):
            sides.append(one)
            digest.update(sha256)
        return sides, digest.hexdigest()

    def look(self, index: int) -> tuple[Sides, bytes]:
        """Sides by the header alone where PIL can tell them, and the sha256 of the bytes."""
        data = self.bytes_of(index)
        return header_sides(data) or Sides(*self.decode(index, data).size), hashlib.sha256(data).digest()

    def bytes_of(self, index: int) -> bytes:
        try:
            return storage.read_object(self.files[index])
        except Unreadable as error:
            raise PhotoError("unreadable", str(error), address=self.address(index)) from error

    def decode(self, index: int, data: bytes) -> Image.Image:
        try:
            return photo.decode(data, max_pixels=MAX_PIXELS, min_side_px=1)
        except PhotoError as error:
            raise PhotoError(error.reason, f"{error.detail or photo.REASONS[error.reason]}; expected an image; mend it or "
                             "take it away", address=self.address(index)) from error


def header_sides(data: bytes) -> Sides | None:
    """Upright sides of a JPEG, PNG or WebP; None where PIL does not know the file, which is then decoded in full."""
    try:
        if photo.sniff(data) not in ("JPEG", "PNG", "WEBP"):
            return None
        with Image.open(BytesIO(data)) as image:
            width, height = image.size
            turned = image.getexif().get(photo.ORIENTATION, 1) in (5, 6, 7, 8)
    except (PhotoError, Image.DecompressionBombError, *photo.DECODER_ERRORS):
        return None
    return Sides(height, width) if turned else Sides(width, height)


def lanczos(image: np.ndarray, side: int) -> np.ndarray:
    """To side × side by PIL's antialiased Lanczos; the image itself where it has that size."""
    if image.shape[:2] == (side, side):
        return image
    return np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.LANCZOS))


# ---------------------------------------------------------------- datasets


class DatasetSource:
    """The photos of a snapshot, or of one of its splits, in manifest order. Patches are read from tiles of the pyramid."""

    def __init__(self, dataset: Dataset, *, split: Split = "all") -> None:
        """Raises EvaluationError: the split is empty."""
        self.dataset, self.split = dataset, split
        self.uri = dataset.snapshot_uri
        self.rows = rows_of(dataset.manifest, split)
        if not len(self.rows):
            raise EvaluationError(f"{self.uri}: {len(dataset)} photos, none in split {split}; expected some; name another "
                                  "split")

    def __len__(self) -> int:
        return len(self.rows)

    def name(self, index: int) -> str:
        """The last part of the address that the photo came from."""
        return str(self.dataset[int(self.rows[index])]["uri"]).rsplit("/", 1)[-1]

    def address(self, index: int) -> str:
        return f"{self.uri} row {self.rows[index]} ({self.name(index)})"

    def sides(self, index: int) -> Sides:
        """The manifest does not tell portrait from landscape: always the long side first."""
        row, manifest = self.rows[index], self.dataset.manifest
        return Sides(int(manifest.long_side[row]), int(manifest.short_side[row]))

    def read(self, index: int) -> np.ndarray:
        """Raises EvaluationError: a photo that is not square, because tiles are read by square views."""
        sides = self.sides(index)
        if sides.width != sides.height:
            raise EvaluationError(f"{self.address(index)}: {sides.width}x{sides.height}; a dataset's photos are read as "
                                  "squares; choose a side to which they are brought")
        return self.patch(index, side=sides.short, y=0, x=0, p=sides.short)

    def patch(self, index: int, *, side: int, y: int, x: int, p: int, offset: float | str = "center") -> np.ndarray:
        require_side(self, index, side)
        return self.dataset.patch(int(self.rows[index]), r=side, y=y, x=x, size=p, view=offset)

    def fingerprint(self) -> str:
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        manifest = storage.read_bytes(manifest_uri(self.dataset.uri, self.dataset.number))
        return hashlib.sha256(manifest + self.split.encode()).hexdigest()

    def describe(self) -> dict[str, object]:
        return {"uri": self.uri, "kind": "dataset", "split": self.split, "images": len(self), "fingerprint": self.fingerprint(),
                "decoding": "patches from the tiles of the snapshot's pyramids"}


def rows_of(manifest: Manifest, split: Split) -> np.ndarray:
    """The rows of a split, (n,) int64, in manifest order."""
    return np.flatnonzero(manifest.split == {"train": 0, "val": 1}[split]) if split != "all" else np.arange(len(manifest))


# ---------------------------------------------------------------- for both


def square(source: Source, index: int, side: int, *, resample: Resample = "lanczos") -> np.ndarray:
    """The centre square of an image at a side, uint8 (side, side, 3). bicubic: from all its pixels, by PIL, antialiased.

    Raises EvaluationError: the image is smaller.
    """
    if resample == "lanczos" or source.sides(index).short == side:
        return source.patch(index, side=side, y=0, x=0, p=side)
    require_side(source, index, side)
    native = source.sides(index).short
    pixels = source.patch(index, side=native, y=0, x=0, p=native)
    return bicubic(pixels, side)


def bicubic(image: np.ndarray, side: int) -> np.ndarray:
    """To side × side by PIL's antialiased bicubic."""
    return np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC))


def require_side(source: Source, index: int, side: int, sides: Sides | None = None) -> None:
    """Raise EvaluationError where an image (of these sides, where they are known) is too small for a view of that side."""
    sides = sides or source.sides(index)
    if sides.short < side:
        raise EvaluationError(f"{source.address(index)}: {sides.width}x{sides.height}; side {side} was asked for and nothing "
                              "is enlarged; choose a smaller side, or take the image away")


def in_order(function: Callable[[int], T], items: range, *, threads: int) -> Iterator[T]:
    """function(item) of every item, in order, a few at a time; the first error ends it."""
    with ThreadPoolExecutor(threads, thread_name_prefix="infd-images") as pool:
        ahead = [pool.submit(function, item) for item in items[:2 * threads]]
        for item in items:
            yield ahead.pop(0).result()
            if (following := item + 2 * threads * items.step) in items:
                ahead.append(pool.submit(function, following))
