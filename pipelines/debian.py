"""Debian packages as data: fetched with apt-get, read in pure Python. No root, no dpkg, nothing installed."""

import io
import logging
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pyarrow as pa

from infd.errors import StorageError

logger = logging.getLogger(__name__)

AR_MAGIC = b"!<arch>\n"
AR_HEADER_BYTES = 60
APT_TIMEOUT_S = 600


def download(package: str, scratch: Path) -> Path:
    """The .deb of a package, fetched into `scratch`.

    Where this machine's package lists are absent or old, lists of its configured sources are fetched into
    `scratch/lists` and used instead: the system's own stay as they are, so root is not needed.
    Raises StorageError: no apt-get, no such package, no network.
    """
    if shutil.which("apt-get") is None:
        raise StorageError(f"package {package}: this machine has no apt-get; Debian or Ubuntu was expected; "
                           "use photographs of your own instead (make demo IMAGES=folder)")
    scratch.mkdir(parents=True, exist_ok=True)
    lists = scratch / "lists"
    options = private_lists(lists) if lists.exists() else []
    done = apt([*options, "download", package], scratch)
    if done.returncode != 0 and not options:
        logger.info("the package lists of this machine do not serve %s; fetching lists into a scratch folder", package)
        (lists / "partial").mkdir(parents=True)
        options = private_lists(lists)
        apt([*options, "update"], scratch)
        done = apt([*options, "download", package], scratch)
    found = sorted(scratch.glob(f"{package}_*.deb"))
    if done.returncode != 0 or not found:
        raise StorageError(f"package {package}: apt-get says {last_line(done.stderr)!r}; expected a .deb; "
                           f"check the network, then run apt-get update and apt-get download {package} by hand")
    return found[-1]


def private_lists(folder: Path) -> list[str]:
    """Options that make apt-get keep and read its lists and caches in `folder`."""
    return ["-o", f"Dir::State::lists={folder}", "-o", f"Dir::Cache={folder.parent}"]


def apt(arguments: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """apt-get run in `folder`; its sandbox user could not write there."""
    command = ["apt-get", "-qq", "-o", "APT::Sandbox::User=root", *arguments]
    try:
        return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=APT_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise StorageError(f"apt-get {arguments[-1]}: not done after {APT_TIMEOUT_S} s; "
                           "expected within that; try again on a faster network") from error


def last_line(text: str) -> str:
    """What a program said last."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "nothing"


def files(deb: Path) -> Iterator[tuple[str, IO[bytes]]]:
    """The regular files of a .deb as (path without leading "./", open file), in the archive's order.

    Each file can be read until the next is asked for. Raises StorageError: not a whole .deb.
    """
    with deb.open("rb") as archive:
        try:
            name, data = data_member(archive)
            with tarfile.open(fileobj=decompressed(name, data), mode="r|*") as box:
                for entry in box:
                    file = box.extractfile(entry) if entry.isfile() else None
                    if file is not None:
                        yield entry.name.removeprefix("./"), file
        except (tarfile.TarError, EOFError, ValueError, OSError) as error:
            raise StorageError(f"{deb}: is no whole Debian package ({error}); expected ar with a data.tar inside; "
                               "delete it and fetch it again") from error


def data_member(archive: IO[bytes]) -> tuple[str, bytes]:
    """Name and bytes of the member `data.tar*` of an ar archive. Raises ValueError: not one, or cut short."""
    if archive.read(len(AR_MAGIC)) != AR_MAGIC:
        raise ValueError("no ar magic")
    while header := archive.read(AR_HEADER_BYTES):
        if len(header) < AR_HEADER_BYTES or header[58:60] != b"`\n":
            raise ValueError("bad ar header")
        name = header[:16].decode("ascii").rstrip().rstrip("/")
        size = int(header[48:58])
        if name.startswith("data.tar"):
            data = archive.read(size)
            if len(data) < size:
                raise ValueError(f"{name} has {len(data)} of {size} bytes")
            return name, data
        archive.seek(size + size % 2, io.SEEK_CUR)  # members are padded to even length
    raise ValueError("no data.tar")


def decompressed(name: str, data: bytes) -> IO[bytes]:
    """A stream that tarfile reads; Ubuntu packs with zstd, which tarfile does not know before Python 3.14."""
    if name.endswith(".zst"):
        return pa.CompressedInputStream(pa.BufferReader(data), "zstd")  # pyright: ignore[reportReturnType]
    return io.BytesIO(data)
