"""All bytes by address: `s3://bucket/key`, `file:///abs`, or a plain path; always `str`.

A `file://` address is the prefix and a literal path: nothing is percent-decoded. Keys may hold spaces, %, + and any
script. Three writes: `put_atomic` (nobody ever sees half a file), `put_if_absent` and `replace_if_unchanged` (of
several writers at once exactly one wins). On S3 these are PUTs with If-None-Match and If-Match; on local files a
complete temporary file that is renamed, linked, or renamed under a lock.
"""

import errno
import fcntl
import hashlib
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from infd import s3, s3_client
from infd.errors import PreconditionFailed, StorageError
from infd.s3_errors import Unreadable

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

FILE = "file://"
PARTIAL, LOCK = ".infd-partial", ".infd-lock"
"""Endings of names that are never listed: a write under way, the lock of a conditional write."""
YOUNG_S = 60.0
"""A write under way that is younger may not have its lock yet."""


class ObjectInfo(NamedTuple):
    """One object of a listing. `etag` tells versions of this object apart, and nothing else."""

    uri: str
    etag: str
    size: int


# ---------------------------------------------------------------- addresses


def is_remote(uri: str) -> bool:
    """True for `s3://` addresses. Raises StorageError for a scheme that is not known."""
    if uri.startswith(s3_client.SCHEME):
        return True
    scheme, separator, _ = uri.partition("://")
    if separator and scheme != "file":
        raise StorageError(f"{uri}: unknown scheme {scheme}; expected s3://, file:// or a path")
    return False


def local_path(uri: str) -> str:
    """The path of a local address."""
    return uri.removeprefix(FILE)


def join(uri: str, *parts: str) -> str:
    """`join("s3://b/x/", "y", "z")` is "s3://b/x/y/z"."""
    return "/".join([uri if uri.endswith("://") else uri.rstrip("/") or "", *(part.strip("/") for part in parts)])


def parent(uri: str) -> str:
    """The address one level up: "s3://b/x" for "s3://b/x/y". The parent of a bucket or of / is itself."""
    head = s3_client.SCHEME if is_remote(uri) else FILE if uri.startswith(FILE) else ""
    rest = uri.removeprefix(head).rstrip("/")
    above, slash, _ = rest.rpartition("/")
    if head == s3_client.SCHEME:
        return head + (above if slash else rest)
    return head + (above or ("/" if slash or not rest else "."))


def absolute(uri: str) -> str:
    """The address that means the same from any folder, without a slash at its end."""
    if is_remote(uri) or uri.startswith(FILE):
        return uri.rstrip("/") if uri.rstrip("/") not in ("s3:", "file:") else uri
    return os.path.abspath(os.path.expanduser(uri))


def filesystem(uri: str) -> "tuple[FileSystem, str]":
    """A pyarrow filesystem and the path in it. Honours AWS_* and AWS_ENDPOINT_URL, which pyarrow alone does not."""
    if is_remote(uri):
        at = s3_client.address(uri)
        return s3_client.filesystem(), f"{at.bucket}/{at.key}".rstrip("/")
    from pyarrow import fs

    return fs.LocalFileSystem(), local_path(absolute(uri))


# ---------------------------------------------------------------- reading


def read_bytes(uri: str) -> bytes:
    """All bytes. Raises StorageError naming `uri`."""
    if is_remote(uri):
        return s3.read(uri)[0]
    with _open(uri) as file:
        return file.read()


def read_with_etag(uri: str) -> tuple[bytes, str]:
    """Bytes, and the etag that `replace_if_unchanged` takes (on local files the sha256 of the bytes)."""
    if is_remote(uri):
        return s3.read(uri)
    data = read_bytes(uri)
    return data, hashlib.sha256(data).hexdigest()


def read_object(info: ObjectInfo) -> bytes:
    """The bytes of a listed object. Raises PreconditionFailed if it has changed since, Unreadable if it is gone."""
    if is_remote(info.uri):
        return s3.read(info.uri, if_etag=info.etag)[0]
    with _open(info.uri) as file:
        data = file.read()
        if _stat_etag(os.fstat(file.fileno())) != info.etag or len(data) != info.size:
            raise PreconditionFailed(f"{info.uri}: it changed after it was listed; list again")
    return data


def exists(uri: str) -> bool:
    """True if there is an object (on local disks: a file) at this very address."""
    return s3.exists(uri) if is_remote(uri) else os.path.isfile(local_path(uri))


def get_file(uri: str, path: str) -> None:
    """The bytes into the local file `path`, which appears only when whole."""
    with _whole_file(path) as file:
        if is_remote(uri):
            s3.download(uri, file)
        else:
            with _open(uri) as source:
                shutil.copyfileobj(source, file, s3.CHUNK_BYTES)


def require_root(uri: str) -> None:
    """Raise StorageError where the bucket of `uri` does not exist; a local folder may be missing."""
    if is_remote(uri):
        s3.require_bucket(uri)


def list_objects(uri: str) -> Iterator[ObjectInfo]:
    """Every object under `uri`, recursively, streamed. Writes under way are left out.

    The order is that of the keys' bytes, on folders and on Amazon's S3; some stores go folder by folder (SeaweedFS: a/b
    before a-b), so sort where the order counts. A prefix with nothing in it lists nothing. The etag of a local file is
    made from its time and size, so that a listing reads no file. Links are followed, to folders too, but for those that
    lead back to a folder around them; links to nothing are left out.
    """
    if is_remote(uri):
        for found, etag, size in s3.listing(uri):
            yield ObjectInfo(found, etag, size)
        return
    root = absolute(uri)
    head = FILE if root.startswith(FILE) else ""
    if os.path.isfile(local_path(root)):
        raise StorageError(f"{uri}: it is a file; expected a folder")
    if os.path.isdir(local_path(root)):
        yield from _walk(local_path(root), head)


def _walk(folder: str, head: str, around: frozenset[tuple[int, int]] = frozenset()) -> Iterator[ObjectInfo]:
    """`around`: device and inode of the folders that the walk is inside of."""
    entries: list[tuple[bytes, str, os.stat_result]] = []
    try:
        here = os.stat(folder)
        for entry in os.scandir(folder):
            if (stat := _stat(entry)) is not None:
                entries.append((os.fsencode(entry.name) + (b"/" if S_ISDIR(stat.st_mode) else b""), entry.path, stat))
    except OSError as error:
        raise _mended(folder, error) from error
    around |= {(here.st_dev, here.st_ino)}
    for name, path, stat in sorted(entries, key=lambda entry: entry[0]):
        if S_ISDIR(stat.st_mode):
            if (stat.st_dev, stat.st_ino) not in around:
                yield from _walk(path, head, around)
        elif S_ISREG(stat.st_mode) and not name.endswith((PARTIAL.encode(), LOCK.encode())):
            yield ObjectInfo(head + _text(path), _stat_etag(stat), stat.st_size)


def _stat(entry: "os.DirEntry[str]") -> os.stat_result | None:
    """Of what a link leads to; None for one that leads nowhere or to itself, and for a file that has just gone."""
    try:
        return entry.stat()
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ELOOP):
            return None
        raise


def _text(path: str) -> str:
    """The path as text that can be stored. A name that is no UTF-8 is shown with escapes, and so cannot be opened: it is
    told of, by name, where somebody reads it."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _stat_etag(stat: os.stat_result) -> str:
    return f"{stat.st_mtime_ns:x}-{stat.st_size:x}"


def _open(uri: str) -> IO[bytes]:
    try:
        return open(local_path(uri), "rb")
    except OSError as error:
        raise _mended(uri, error) from error


def _mended(uri: str, error: OSError) -> StorageError:
    if isinstance(error, FileNotFoundError | PermissionError | IsADirectoryError):
        return Unreadable(f"{uri}: {error.strerror}; expected a file that can be read; check the address")
    return StorageError(f"{uri}: {error.strerror}; check the disk and the address")


# ---------------------------------------------------------------- writing


def put_atomic(uri: str, data: bytes) -> None:
    """Write `data`; a reader sees what was there before, or all of it."""
    if is_remote(uri):
        return s3.put(uri, data)
    with _whole_file(local_path(uri)) as file:
        file.write(data)


def put_file(uri: str, path: str) -> None:
    """`put_atomic` from a local file of any size."""
    if is_remote(uri):
        return s3.upload(uri, path)
    get_file(path, local_path(uri))


def put_if_absent(uri: str, data: bytes) -> None:
    """Write `data` where nothing is yet. Law: of several writers at once exactly one wins; PreconditionFailed else."""
    if is_remote(uri):
        return s3.put_if(uri, data, IfNoneMatch="*")
    path = local_path(uri)
    try:
        with _under_way(path) as file:
            file.write(data)
            _sync(file)
            os.link(file.name, path)
        _sync_folder(path)
    except FileExistsError as error:
        raise PreconditionFailed(f"{uri}: someone else wrote it first; read it again and decide anew") from error
    except OSError as error:
        raise _mended(uri, error) from error


def replace_if_unchanged(uri: str, data: bytes, etag: str | None) -> None:
    """Write `data` over the version `etag` of `read_with_etag`; None: nothing may be there. Else PreconditionFailed."""
    if etag is None:
        return put_if_absent(uri, data)
    if is_remote(uri):
        return s3.put_if(uri, data, IfMatch=f'"{etag}"')
    with _locked(local_path(uri)):
        if not exists(uri) or read_with_etag(uri)[1] != etag:
            raise PreconditionFailed(f"{uri}: it has changed since it was read; read it again and decide anew")
        put_atomic(uri, data)


def delete(uri: str) -> None:
    """Delete one object; nothing happens where there is none."""
    if is_remote(uri):
        return s3.delete([uri])
    _remove(local_path(uri))


def delete_prefix(uri: str) -> None:
    """Delete everything under `uri`. Refuses a whole bucket and the root folder."""
    if is_remote(uri):
        if not s3_client.address(uri).key.strip("/"):
            raise StorageError(f"{uri}: a whole bucket; expected a prefix in it")
        found = [info.uri for info in list_objects(uri)]
        return s3.delete(found)
    path = local_path(absolute(uri))
    if path == os.path.dirname(path):
        raise StorageError(f"{uri}: the root folder; expected a folder in it")
    if os.path.isdir(path):
        shutil.rmtree(path)


def file_sha256(path: str | Path) -> str:
    """sha256 (hex) of a local file, read in pieces."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _partial(path: str) -> str:
    """A name beside `path` for a write under way; makes the folder."""
    folder, name = os.path.split(os.path.abspath(path))
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise _mended(path, error) from error
    return os.path.join(folder, f".{name[:100]}.{uuid.uuid4().hex}{PARTIAL}")


@contextmanager
def _whole_file(path: str) -> Iterator[IO[Any]]:
    """A file to write; it takes the name `path`, with its bytes on the disk, when the block ends without an error."""
    try:
        with _under_way(path) as file:
            yield file
            _sync(file)
            os.replace(file.name, path)
        _sync_folder(path)
    except OSError as error:
        raise _mended(path, error) from error


@contextmanager
def _under_way(path: str) -> Iterator[IO[Any]]:
    """An open file beside `path`, gone at the end unless it was renamed; until then its lock says that its writer lives."""
    partial = _partial(path)
    try:
        with open(partial, "w+b") as file:
            with suppress(OSError):  # some network disks have no locks
                fcntl.flock(file, fcntl.LOCK_EX)
            yield file
    finally:
        _remove(partial)


def remove_left(uri: str) -> int:
    """Remove what killed writers left under a local folder; how many files. Law: what a living process writes stays.

    On S3 there is nothing to see: a write appears when it is whole, and the parts of an upload that was cut short are
    for the bucket's own lifecycle rule to remove.
    """
    if is_remote(uri):
        return 0
    removed = 0
    for folder, _, names in os.walk(local_path(absolute(uri))):
        for name in names:
            removed += name.endswith(PARTIAL) and _removed_left(os.path.join(folder, name))
    return removed


def _removed_left(partial: str) -> bool:
    try:
        with open(partial, "r+b") as file:
            if time.time() - os.fstat(file.fileno()).st_mtime < YOUNG_S:
                return False
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.unlink(partial)
        return True
    except OSError:  # its writer lives, or another process removed it, or it is not ours to remove
        return False


def _sync(file: IO[Any]) -> None:
    file.flush()
    os.fsync(file.fileno())


def _sync_folder(path: str) -> None:
    """Make the rename itself survive a power cut."""
    handle = os.open(os.path.dirname(os.path.abspath(path)), os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _locked(path: str) -> Iterator[None]:
    """Hold the lock of `path` against other processes and threads."""
    folder, name = os.path.split(os.path.abspath(path))
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, f".{name}{LOCK}"), "wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _remove(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        return
    except OSError as error:
        raise _mended(path, error) from error
