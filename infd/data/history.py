"""The snapshots of a dataset: what each holds, and what changed between two. Reads manifests, opens no shard."""

import json
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from infd import storage
from infd.data import snapshot
from infd.errors import DatasetError, StorageError


@dataclass(frozen=True, kw_only=True)
class Facts:
    """One snapshot in figures, as its manifest's metadata say."""

    number: int
    parent: int | None
    photos: int
    shards: int
    bytes: int
    rejected: int
    info: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Difference:
    """What the newer of two snapshots has, and the older has not. Photos are told apart by uri, their bytes by image_id."""

    added: list[str]
    """uris that only the newer has."""
    removed: list[str]
    """uris that only the older has."""
    changed: list[str]
    """uris of both, with other bytes."""
    renamed: list[tuple[str, str]]
    """(old uri, new uri) of equal bytes; they stand in `removed` and `added` too."""
    unchanged: int
    shared_shards: int
    shards: tuple[int, int]
    """Of the older, of the newer."""
    new_bytes: int
    """Bytes of the newer one's shards that the older has not."""


def located(uri: str) -> tuple[str, int]:
    """(root, number) of the snapshot that `uri` names, "…@7" or the newest. Raises DatasetError where there is none."""
    root, number = snapshot.split_address(uri)
    root = storage.absolute(root)
    number = number or snapshot.newest_number(root)
    if number is None:
        storage.require_root(root)
        raise DatasetError(f"{uri}: no snapshot there; expected a dataset; make one with jobs/ingest.py")
    return root, number


def info_of(schema: pa.Schema) -> dict[str, Any]:
    """What a manifest's metadata hold: parent, source, config, counts, …"""
    return json.loads((schema.metadata or {}).get(b"infd", b"{}"))


def numbers(root: str) -> list[int]:
    """The numbers of all snapshots that are there, ascending."""
    names = (info.uri.rpartition("/")[2] for info in storage.list_objects(storage.join(root, "snapshots")))
    stems = (name.removesuffix(".parquet") for name in names if name.endswith(".parquet"))
    return sorted(int(stem) for stem in stems if stem.isascii() and stem.isdigit())


def facts(root: str, number: int) -> Facts:
    """A snapshot's figures. Only the end of its manifest is read, so that a long history stays cheap."""
    where = snapshot.manifest_uri(root, number)
    filesystem, path = storage.filesystem(where)
    try:
        info = info_of(pq.read_schema(path, filesystem=filesystem))
    except FileNotFoundError as error:
        raise DatasetError(f"{root}@{number}: no such snapshot") from error
    except pa.ArrowException as error:
        raise DatasetError(f"{where}: it cannot be read as a manifest ({type(error).__name__}); expected the file that an "
                           "ingest committed") from error
    except OSError as error:
        raise StorageError(f"{where}: {type(error).__name__}; check the store") from error
    counts = info.get("counts", {})
    rejected = counts.get("rejected", 0)
    return Facts(number=number, parent=info.get("parent"), photos=counts.get("photos", 0), shards=counts.get("shards", 0),
                 bytes=counts.get("bytes", 0), info=info,
                 rejected=sum(rejected.values()) if isinstance(rejected, dict) else rejected)


def all_facts(dataset: str) -> list[Facts]:
    """The figures of every snapshot of the dataset at `dataset`, oldest first. Raises DatasetError if there is none."""
    root, _ = located(dataset)
    return [facts(root, number) for number in numbers(root)]


def difference(older: str, newer: str) -> Difference:
    """What became of the snapshot `older` in the snapshot `newer`; addresses as "…@7", or of a dataset for its newest."""
    tables = [snapshot.read_table(*located(uri), ("sha256", "bytes", "rows", "dropped", "uris", "image_ids"))
              for uri in (older, newer)]
    return difference_of(*(table.to_pylist() for table in tables))


def difference_of(older: list[dict[str, Any]], newer: list[dict[str, Any]]) -> Difference:
    """`difference`, of entries of manifests."""
    old, new = photos(older), photos(newer)
    had, has = ({entry["sha256"] for entry in entries} for entries in (older, newer))
    added, removed = sorted(new.keys() - old.keys()), sorted(old.keys() - new.keys())
    both = old.keys() & new.keys()
    changed = sorted(uri for uri in both if old[uri] != new[uri])
    came = {new[uri]: uri for uri in added}
    return Difference(added=added, removed=removed, changed=changed, unchanged=len(both) - len(changed),
                      renamed=[(uri, came[old[uri]]) for uri in removed if old[uri] in came],
                      shared_shards=len(had & has), shards=(len(older), len(newer)),
                      new_bytes=sum(entry["bytes"] for entry in newer if entry["sha256"] not in had))


def photos(entries: list[dict[str, Any]]) -> dict[str, str]:
    """uri → image_id of every photo that counts."""
    found: dict[str, str] = {}
    for entry in entries:
        dropped = set(entry["dropped"])
        found |= {uri: identity for row, (uri, identity) in enumerate(zip(entry["uris"], entry["image_ids"], strict=True))
                  if row not in dropped}
    return found
