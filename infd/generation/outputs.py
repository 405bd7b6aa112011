"""Pictures that are whole or not there: a scratch folder until the last byte is written, then a rename or an upload.

On a local disk the scratch folder lies beside the final name, hidden, so that a rename moves its files into place. What
a killed render left is removed by the next one of the same name.
"""

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from infd import storage
from infd.data import scratch
from infd.errors import StorageError

PREFIX = "infd-render-"


@contextmanager
def whole_file(uri: str) -> Iterator[str]:
    """A path to write a file at; it becomes `uri` when the block ends without an error. Raises StorageError."""
    with scratch_for(uri) as folder:
        path = os.path.join(folder, "whole" + os.path.splitext(uri)[1])
        yield path
        if storage.is_remote(uri):
            storage.put_file(uri, path)
        else:
            _sync(path)
            os.replace(path, _local(uri))
            _sync(os.path.dirname(_local(uri)))


@contextmanager
def whole_deep_zoom(uri: str) -> Iterator[str]:
    """A path P to write P.dzi and the folder P_files at; they become `uri`.dzi and `uri`_files. Raises StorageError.

    An earlier pyramid of that name goes first, and the .dzi comes last: where there is a .dzi, its tiles are there.
    """
    with scratch_for(uri) as folder:
        path = os.path.join(folder, "whole")
        yield path
        storage.delete(f"{uri}.dzi")
        if storage.is_remote(uri):
            storage.delete_prefix(f"{uri}_files")
            for info in storage.list_objects(f"{path}_files"):
                storage.put_file(f"{uri}_files{info.uri.removeprefix(f'{path}_files')}", info.uri)
            storage.put_file(f"{uri}.dzi", f"{path}.dzi")
        else:
            if os.path.isdir(f"{_local(uri)}_files"):
                os.rename(f"{_local(uri)}_files", f"{path}_before")
            os.rename(f"{path}_files", f"{_local(uri)}_files")
            os.replace(f"{path}.dzi", f"{_local(uri)}.dzi")


@contextmanager
def scratch_for(uri: str) -> Iterator[str]:
    """A folder to prepare `uri` in, gone at the end of the block: beside it, or for a bucket a temporary one."""
    if storage.is_remote(uri):
        with scratch.folder(PREFIX) as folder:
            yield folder
        return
    try:
        with _beside(_local(uri)) as folder:
            yield folder
    except OSError as error:
        raise StorageError(f"{uri}: {error.strerror}; expected a place that can be written; check the disk and the "
                           "address") from error


@contextmanager
def _beside(path: str) -> Iterator[str]:
    parent, name = os.path.split(path)
    os.makedirs(parent, exist_ok=True)
    prefix = f".{name[:100]}."
    _remove_left(parent, prefix)
    folder = tempfile.mkdtemp(prefix=prefix, suffix=storage.PARTIAL, dir=parent)
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network disks have no locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield folder
    finally:
        shutil.rmtree(folder)
        os.close(handle)


def _remove_left(parent: str, prefix: str) -> None:
    """Remove the scratch folders of renders that were killed. Law: that of a living process stays."""
    for name in os.listdir(parent):
        folder = os.path.join(parent, name)
        if not (name.startswith(prefix) and name.endswith(storage.PARTIAL) and os.path.isdir(folder)):
            continue
        with suppress(OSError):  # its render lives, or another process removed it, or it is not ours to remove
            handle = os.open(folder, os.O_RDONLY)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if time.time() - os.fstat(handle).st_mtime >= storage.YOUNG_S:
                    shutil.rmtree(folder)
            finally:
                os.close(handle)


def _local(uri: str) -> str:
    return os.path.abspath(storage.local_path(uri))


def _sync(path: str) -> None:
    """Bytes of a file, or names of a folder, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
