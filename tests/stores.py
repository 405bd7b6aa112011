"""Stores that are not as Amazon's."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from infd import s3, storage
from infd.storage import ObjectInfo


def one_etag_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Folders list every file with the etag of nothing, as some stores do what they have not hashed."""
    etag, listed = min(s3.EMPTY_ETAGS), storage.list_objects

    def list_objects(uri: str) -> Iterator[ObjectInfo]:
        return (ObjectInfo(info.uri, etag, info.size) for info in listed(uri))

    def read_object(info: ObjectInfo) -> bytes:
        assert info.etag == etag  # what the store is asked for is what it said
        return Path(info.uri).read_bytes()

    monkeypatch.setattr(storage, "list_objects", list_objects)
    monkeypatch.setattr(storage, "read_object", read_object)
