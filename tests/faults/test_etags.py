"""Etags that are no hash of the bytes (KMS, S3 Express, uploads in parts): they tell versions of one file apart, no more."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from pictures import encoded, picture

from infd import storage
from infd.config import IngestConfig
from infd.data.snapshot import open_dataset
from infd.storage import ObjectInfo
from pipelines import ingest_plan
from pipelines.ingest import ingest

CONFIG = IngestConfig(codec="png", tile_px=64, min_side_px=16)


@pytest.fixture
def etags(monkeypatch) -> dict[str, str]:
    """File name → the etag that listings give it from now on."""
    given: dict[str, str] = {}
    listed = storage.list_objects

    def list_objects(uri: str) -> Iterator[ObjectInfo]:
        return (info._replace(etag=given.get(Path(info.uri).name, info.etag)) for info in listed(uri))

    def read_object(info: ObjectInfo) -> bytes:
        assert info.etag == given[Path(info.uri).name]
        return Path(info.uri).read_bytes()

    monkeypatch.setattr(storage, "list_objects", list_objects)
    monkeypatch.setattr(storage, "read_object", read_object)
    return given


def photos(dataset: str) -> dict[str, str]:
    """File name → image_id of the photos, and → "" of the duplicates."""
    opened = open_dataset(dataset)
    rejects = ingest_plan.read_rows(f"{dataset}/runs/{opened.manifest.info['run']}/rejects.parquet")
    assert {row["reason"] for row in rejects} <= {"duplicate"}
    found = {Path(opened[row]["uri"]).name: opened[row]["image_id"] for row in range(len(opened))}
    assert len(found) == len(opened)
    return found | {Path(row["uri"]).name: "" for row in rejects}


def test_law_an_etag_says_nothing_about_the_bytes(tmp_path, here, etags):
    source, dataset = tmp_path / "photos", str(tmp_path / "ds")
    source.mkdir()
    first, second = (encoded(picture(40, 30, seed)) for seed in (1, 2))
    ids = [hashlib.sha256(data).hexdigest()[:32] for data in (first, second)]
    for name, data, etag in (("a.png", first, "0" * 32), ("b.png", second, "0" * 32), ("c.png", first, "f" * 31 + "-3")):
        (source / name).write_bytes(data)
        etags[name] = etag
    ingest(str(source), dataset, config=CONFIG)
    assert photos(dataset) == {"a.png": ids[0], "b.png": ids[1], "c.png": ""}  # equal etags, other bytes; and the reverse
    etags["b.png"] = hashlib.md5(first).hexdigest()  # encrypted anew: the same bytes, and the MD5 of another photo
    assert ingest(str(source), dataset, config=CONFIG).snapshot_uri == f"{dataset}@2"  # it holds the new etag
    assert photos(dataset) == {"a.png": ids[0], "b.png": ids[1], "c.png": ""}
    (source / "b.png").write_bytes(first[:-1] + b"!")
    assert not ingest(str(source), dataset, config=CONFIG).is_new  # the store says that nothing changed
    etags["b.png"] = "another"
    (source / "b.png").write_bytes(first)
    ingest(str(source), dataset, config=CONFIG)
    assert photos(dataset) == {"a.png": ids[0], "b.png": "", "c.png": ""}
