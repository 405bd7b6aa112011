"""Captions and their embeddings, from a Parquet table that a user made with a text encoder of their choice.

    image_id or uri   which photo
    caption           text, optional
    embedding         list of S lists of K numbers (or one list of K: S = 1), optional; the same S and K in every row
"""

import functools
import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from infd import storage
from infd.errors import ConfigError, StorageError

KEYS = ("image_id", "uri")
KEPT_GROUPS = 4
"""Row groups in memory: photos of a shard ask for rows that lie anywhere, so small row groups are read fastest."""


class Conditions:
    """The table at `uri`: its keys in memory, its rows read by row groups when photos ask for them.

    Raises ConfigError where a column is missing, a key is there twice, or a photo has no row, naming it.
    """

    def __init__(self, uri: str) -> None:
        self.uri = storage.absolute(uri)
        filesystem, path = storage.filesystem(self.uri)
        try:
            self._table = pq.ParquetFile(path, filesystem=filesystem)
        except (pa.ArrowException, OSError) as error:
            raise StorageError(f"conditions {uri}: not readable as Parquet ({error}); expected a table of image_id or uri, "
                               "caption, embedding") from error
        names = self._table.schema_arrow.names
        self.key = next((name for name in KEYS if name in names), "")
        self.columns = [name for name in ("caption", "embedding") if name in names]
        if not self.key or not self.columns:
            raise ConfigError(f"conditions {uri}: columns {', '.join(names)}; expected image_id or uri, and caption or "
                              "embedding")
        self._place: dict[str, tuple[int, int]] = {}
        for group in range(self._table.num_row_groups):
            for row, key in enumerate(self._table.read_row_group(group, [self.key]).column(0).to_pylist()):
                if key in self._place:
                    raise ConfigError(f"conditions {uri}: {self.key}={key} is there twice; expected one row a photo")
                self._place[key] = (group, row)
        self._group = functools.lru_cache(maxsize=KEPT_GROUPS)(
            lambda group: self._table.read_row_group(group, self.columns))
        self.shape = self._shape() if "embedding" in names and self._place else None
        """(S, K) of the embeddings, or None."""

    @property
    def sha256(self) -> str:
        """Of the table's file."""
        return hashlib.sha256(storage.read_bytes(self.uri)).hexdigest()

    def __reduce__(self) -> tuple[Any, ...]:
        return Conditions, (self.uri,)

    def of(self, facts: Sequence[dict[str, Any]]) -> tuple[list[str | None], np.ndarray | None]:
        """Captions, and embeddings (n, S, K) float32, of photos whose image_id and uri `facts` tell."""
        absent = [fact[self.key] for fact in facts if fact[self.key] not in self._place]
        if absent:
            raise ConfigError(f"conditions {self.uri}: no row for {self.key}={absent[0]}; every photo of the snapshot needs "
                              "one; add it, or ingest without that photo")
        rows = [self._row(*self._place[fact[self.key]]) for fact in facts]
        captions = [row.get("caption") for row in rows]
        return captions, None if self.shape is None else np.stack([self._embedding(row["embedding"]) for row in rows])

    def _row(self, group: int, row: int) -> dict[str, Any]:
        return self._group(group).slice(row, 1).to_pylist()[0]

    def _shape(self) -> tuple[int, int]:
        rows, columns = np.atleast_2d(np.asarray(self._row(0, 0)["embedding"], np.float32)).shape
        return rows, columns

    def _embedding(self, value: Any) -> np.ndarray:
        found = np.atleast_2d(np.asarray(value, np.float32))
        if found.shape != self.shape:
            raise ConfigError(f"conditions {self.uri}: an embedding of {found.shape}; the first is {self.shape}; pad all to "
                              "one length")
        return found
