"""A source's files in the order of their uris, as an Arrow table: about twice the bytes of their names, not Python objects.

An ingest must have all of them before it begins, because its units are cut from the sorted whole; so this, and not the
listing itself, is what grows with the source.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, overload

import pyarrow as pa

from infd.s3 import EMPTY_ETAGS
from infd.storage import ObjectInfo

CHUNK = 4096
SCHEMA = pa.schema([("uri", pa.large_string()), ("etag", pa.large_string()), ("size", pa.int64())])


def version(info: ObjectInfo) -> str:
    """What a dataset records as the etag of a file: the listed one, and the size where the store gives one etag for all.

    Not for every file: rows of before hold the etag alone, and would all be read again.
    """
    return f"{info.etag}-{info.size}" if info.size and info.etag in EMPTY_ETAGS else info.etag


class Files(Sequence[ObjectInfo]):
    """Listed files, made into ObjectInfo one chunk at a time."""

    def __init__(self, table: pa.Table) -> None:
        self.table = table

    def __len__(self) -> int:
        return self.table.num_rows

    @overload
    def __getitem__(self, index: int) -> ObjectInfo: ...
    @overload
    def __getitem__(self, index: slice) -> list[ObjectInfo]: ...
    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            return _infos(self.table.slice(start, max(0, stop - start)))[::step]
        if not 0 <= index < len(self):
            raise IndexError(f"file {index} of {len(self)}")
        return _infos(self.table.slice(index, 1))[0]

    def __iter__(self) -> Iterator[ObjectInfo]:
        for start in range(0, len(self), CHUNK):
            yield from _infos(self.table.slice(start, CHUNK))

    def where(self, keep: Callable[[ObjectInfo], bool]) -> "Files":
        """Those for which `keep` is true, in the same order."""
        return Files(self.table.filter(pa.array((keep(info) for info in self), pa.bool_())))


class Units(Sequence[list[ObjectInfo]]):
    """Consecutive files in units; `starts` are the first file of each."""

    def __init__(self, files: Sequence[ObjectInfo], starts: list[int]) -> None:
        self.files, self.starts = files, starts
        self._ends = [*starts, len(files)]

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: Any) -> Any:
        if not 0 <= index < len(self):
            raise IndexError(f"unit {index} of {len(self)}")
        return list(self.files[self._ends[index]:self._ends[index + 1]])


def in_order(infos: Iterable[ObjectInfo]) -> Files:
    """All of `infos`, in the order of their uris' bytes. Stores list in that order, or nearly."""
    chunks: list[pa.Table] = []
    waiting: list[ObjectInfo] = []
    last, is_sorted = b"", True

    def flush() -> None:
        columns = zip(*waiting, strict=True) if waiting else ((), (), ())
        chunks.append(pa.table([pa.array(column, field.type) for column, field in zip(columns, SCHEMA, strict=True)], SCHEMA))
        waiting.clear()

    for info in infos:
        name = info.uri.encode()
        is_sorted, last = is_sorted and last <= name, name
        waiting.append(info)
        if len(waiting) >= CHUNK:
            flush()
    flush()
    table = pa.concat_tables(chunks)
    if not is_sorted:
        table = table.sort_by("uri")  # Arrow compares text by its bytes
    return Files(table)


def table_of(files: Sequence[ObjectInfo]) -> pa.Table:
    """The files as a table of SCHEMA."""
    return files.table if isinstance(files, Files) else in_order(files).table


def _infos(table: pa.Table) -> list[ObjectInfo]:
    return [ObjectInfo(*row) for row in zip(*(table[name].to_pylist() for name in SCHEMA.names), strict=True)]
