"""Captions and their embeddings, from a Parquet table that a user made with a text encoder of their choice.

    image_id or uri   which photo
    caption           text, optional
    embedding         list of S lists of K numbers (or one list of K: S = 1), optional; the same S and K in every row
"""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset

from infd import storage
from infd.errors import ConfigError, StorageError

KEYS = ("image_id", "uri")


class Conditions:
    """The table at `uri`: its keys in memory, its rows read when photos ask for them.

    Raises ConfigError where a column is missing or a photo has no row, naming it.
    """

    def __init__(self, uri: str) -> None:
        self.uri = storage.absolute(uri)
        filesystem, path = storage.filesystem(self.uri)
        try:
            self._table = pyarrow.dataset.dataset(path, filesystem=filesystem, format="parquet")
        except (pa.ArrowException, OSError) as error:
            raise StorageError(f"conditions {uri}: not readable as Parquet ({error}); expected a table of image_id or uri, "
                               "caption, embedding") from error
        names = self._table.schema.names
        self.key = next((name for name in KEYS if name in names), "")
        self.columns = [name for name in ("caption", "embedding") if name in names]
        if not self.key or not self.columns:
            raise ConfigError(f"conditions {uri}: columns {', '.join(names)}; expected image_id or uri, and caption or "
                              "embedding")
        keys = self._table.to_table(columns=[self.key]).column(self.key).to_pylist()
        self._place = {key: at for at, key in enumerate(keys)}
        self.shape = self._shape() if "embedding" in names and keys else None
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
        table = self._table.take([self._place[fact[self.key]] for fact in facts], columns=self.columns)
        captions: list[str | None] = [None] * len(facts)
        if "caption" in self.columns:
            captions = table.column("caption").to_pylist()
        if self.shape is None:
            return captions, None
        return captions, np.stack([self._embedding(value.as_py()) for value in table.column("embedding")])

    def _shape(self) -> tuple[int, int]:
        first = self._table.head(1, columns=["embedding"]).column("embedding")[0].as_py()
        rows, columns = np.atleast_2d(np.asarray(first, np.float32)).shape
        return rows, columns

    def _embedding(self, value: Any) -> np.ndarray:
        found = np.atleast_2d(np.asarray(value, np.float32))
        if found.shape != self.shape:
            raise ConfigError(f"conditions {self.uri}: an embedding of {found.shape}; the first is {self.shape}; pad all to "
                              "one length")
        return found
