"""Verify: a whole snapshot has nothing wrong, and each kind of damage is named, together with all others."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from pictures import encoded, picture
from PIL import Image

from infd import storage
from infd.config import IngestConfig
from infd.data import history, pyramid, shards, snapshot, verify
from infd.data.shards import ShardWriter
from infd.data.snapshot import write_dataset

CONFIG = IngestConfig(codec="png", tile_px=128, min_side_px=64, shard_bytes=200_000, val_fraction=0.5)
SIDES = [(600, 530), (64, 500), (257, 256), (400, 400), (128, 90), (523, 1030)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> str:
    root = str(tmp_path_factory.mktemp("verify") / "ds")
    sources = ((f"mem://{i}.png", encoded(picture(w, h, i))) for i, (w, h) in enumerate(SIDES))
    write_dataset(sources, root, CONFIG, group="hr")
    return root


@pytest.fixture
def root(whole, tmp_path) -> str:
    """A copy that a test may damage."""
    return str(shutil.copytree(whole, tmp_path / "ds"))


def entries_of(root: str) -> list[dict]:
    return snapshot.read_table(root, 1).to_pylist()


def put_manifest(root: str, entries: list[dict], **info: object) -> None:
    about = history.facts(root, 1).info | info
    about.pop("format")
    Path(snapshot.manifest_uri(root, 1)).write_bytes(snapshot.manifest_bytes(entries, about))


def shard_path(root: str, entry: dict) -> Path:
    return Path(root, shards.key(entry["sha256"]))


def texts(report: verify.Report) -> list[str]:
    return [finding.text for finding in report.findings]


def rewritten(root: str, index: int, change: Callable[[int, dict], dict], config: IngestConfig = CONFIG) -> dict:
    """Replace a shard by one with changed rows, under its true hash and in the manifest: all is well but its pixels."""
    entries = entries_of(root)
    table = pa.ipc.open_file(pa.memory_map(str(shard_path(root, entries[index])))).read_all()
    writer = ShardWriter(os.path.join(root, "new.arrow"), config)
    for row, values in enumerate(table.to_pylist()):
        writer.add(change(row, values))
    sha256 = writer.close()
    entry = snapshot.entry_of(writer.path, sha256)
    storage.put_file(storage.join(root, shards.key(sha256)), writer.path)
    entries[index] = entry
    put_manifest(root, entries, counts=snapshot.counts(entries))
    return entry


# ---------------------------------------------------------------- a whole one


@pytest.mark.slow
def test_law_a_whole_snapshot_has_nothing_wrong(whole):
    full, sampled = verify.verify_full(whole), verify.verify(f"{whole}@1", sample=3)
    assert texts(full) == texts(sampled) == []
    assert full.hashed == full.shards > 1 and full.looked_at == full.photos == len(SIDES)
    assert sampled.looked_at == 3 and 0 < sampled.hashed <= sampled.shards
    stored = [snapshot.open_dataset(whole).photo(row) for row in range(len(SIDES))]
    assert full.tiles == sum(len(photo.tiles) for photo in stored)
    assert full.summary().startswith(f"{whole}@1: nothing wrong; ")


@pytest.mark.slow
@pytest.mark.parametrize("codec", ["jpeg", "png", "webp-lossless"])
def test_law_noise_of_any_codec_is_within_tolerance(codec, tmp_path):
    """White noise and black-or-white noise lose the most in JPEG: 4.4 grey levels as measured, of 8."""
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (520, 777, 3), dtype=np.uint8), rng.integers(0, 2, (531, 641, 3), dtype=np.uint8) * 255]
    write_dataset(((f"mem://{i}", encoded(Image.fromarray(p))) for i, p in enumerate(pictures)), str(tmp_path / "ds"),
                  IngestConfig(codec=codec))
    report = verify.verify_full(str(tmp_path / "ds"))
    assert texts(report) == [] and report.tiles > 20


@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 9), st.sampled_from([1, 4, 7]), st.integers(1, 3000))
def test_law_strips_together_are_the_resize(width, height, shrink, rows_of, strip_pixels):
    image = picture(width, height, 3)
    size = (max(1, width // shrink), max(1, -(-height // shrink)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verify, "STRIP_PIXELS", strip_pixels)
        parts = list(verify.resized(lambda *box: image.crop(box), pyramid.Level(width, height, 0),
                                    box=(0.0, 0.0, float(width), float(height)), size=size, rows_of=rows_of))
    assert all(y % rows_of == 0 for y, _ in parts)
    whole = np.asarray(image.resize(size, pyramid.LANCZOS)).astype(int)
    assert_allclose(np.concatenate([rows for _, rows in parts]), whole, rtol=0, atol=1)


@given(st.lists(st.integers(1, 30), min_size=1, max_size=20), st.integers(0, 100), st.integers(0, 5), st.data())
def test_law_a_sample_is_of_photos_and_of_few_shards(rows, sample, seed, data):
    entries = [{"rows": n, "dropped": sorted(data.draw(st.sets(st.integers(0, n - 1))))} for n in rows]
    drawn = verify.sampled_rows(entries, sample, seed=seed)
    alive = [verify.alive_rows(entry) for entry in entries]
    assert sum(map(len, drawn.values())) == min(sample, sum(map(len, alive)))
    assert all(taken and {*taken} <= {*alive[i]} and len({*taken}) == len(taken) for i, taken in drawn.items())
    assert drawn == verify.sampled_rows(entries, sample, seed=seed)
    if all(len(a) >= verify.SHARD_PHOTOS for a in alive):
        assert len(drawn) <= max(1, -(-sample // verify.SHARD_PHOTOS))


# ---------------------------------------------------------------- damage


def test_law_missing_cut_and_flipped_shards_are_all_named(root):
    gone, cut, flipped = entries_of(root)[:3]
    shard_path(root, gone).unlink()
    os.truncate(shard_path(root, cut), cut["bytes"] - 5)
    data = bytearray(shard_path(root, flipped).read_bytes())
    data[len(data) // 2] ^= 1
    shard_path(root, flipped).write_bytes(bytes(data))
    found = verify.verify_full(root).findings
    assert {f.shard for f in found} == {gone["sha256"], cut["sha256"], flipped["sha256"]} and len(found) == 3
    said = {f.shard: f.text for f in found}
    assert f"it is not there; expected {gone['bytes']} bytes" in said[gone["sha256"]]
    assert f"{cut['bytes'] - 5} bytes; the manifest says {cut['bytes']}" in said[cut["sha256"]]
    assert f"the manifest says {flipped['sha256'][:16]}…" in said[flipped["sha256"]]
    assert len(verify.verify(root, sample=0).findings) == 2  # what a listing shows; the flipped bit needs its bytes


@pytest.mark.parametrize("column, value, word", [
    ("short_sides", 77, "short_sides"), ("groups", "lr", "groups hr (manifest: lr)"), ("uris", "mem://x", "uris mem://"),
    ("etags", "x", "etags"), ("image_ids", "0" * 32, "image_ids")])
def test_law_a_manifest_that_says_other_than_its_shard_is_found(root, column, value, word):
    entries = entries_of(root)
    entries[0][column][0] = value
    put_manifest(root, entries, counts=snapshot.counts(entries))
    said = texts(verify.verify_full(root))
    assert any(word in text and "row 0" in text for text in said), said


def test_law_what_a_manifest_cannot_say_is_found_without_a_shard(root):
    def said(change: Callable[[list[dict]], None], **info: object) -> str:
        entries = entries_of(root)
        change(entries)
        return "\n".join(f.text for f in verify.manifest_findings(entries, history.facts(root, 1).info | info))

    assert said(lambda e: None) == ""
    assert "uris 0 entries; expected" in said(lambda e: e[0].update(uris=[]))
    assert "dropped rows [99]; expected rows of 0 to" in said(lambda e: e[0].update(dropped=[99]))
    assert "row 0: sides 63 and" in said(lambda e: e[1]["short_sides"].__setitem__(0, 63))
    other = {"val": "train", "train": "val"}
    assert "the hash of its image_id says" in said(lambda e: e[0]["splits"].__setitem__(0, other[e[0]["splits"][0]]))
    assert "stands there 2 times" in said(lambda e: e.append(e[0]))
    assert f"counts.photos is 3; its rows make {len(SIDES)}" in said(lambda e: None, counts={"photos": 3})


def test_law_dropped_rows_are_no_photos(root):
    entries = entries_of(root)
    entries[0]["dropped"] = [0]
    put_manifest(root, entries, counts=snapshot.counts(entries))
    report = verify.verify_full(root)
    assert texts(report) == [] and report.photos == report.looked_at == len(SIDES) - 1


@pytest.mark.slow
def test_law_wrong_pixels_under_a_right_hash_are_found(root):
    """A tile that is no picture, one of wrong sides, one of another place, another photo's lowres, other levels."""
    foreign = pyramid.build(picture(600, 530, 99), CONFIG)

    def change(row: int, values: dict) -> dict:
        if row:
            return values
        tiles = list(values["tiles"])
        match kind:
            case "text":
                tiles[3] = b"no picture"
            case "cut":
                tiles[2] = tiles[2][:len(tiles[2]) // 2]
            case "sides":
                tiles[0] = tiles[-1]
            case "place":
                first = values["levels"][1]["first_tile"]
                tiles[first], tiles[first + 1] = tiles[first + 1], tiles[first]
            case "lowres":
                return {**values, "lowres": foreign.lowres}
            case "levels":
                return {**values, "levels": values["levels"][:1]}
            case "fewer":
                tiles.pop()
        return {**values, "tiles": tiles}

    for kind, words in (("text", "level 0 tile 3 cannot be decoded as png (10 bytes); in all 1 of its 25 tiles"),
                        ("cut", "level 0 tile 2 cannot be decoded"), ("sides", "tile 0 has 44x9 pixels; expected 128x128"),
                        ("place", "grey levels from level 0 resized; expected at most 1; in all 2 of its"),
                        ("lowres", "lowres is"), ("levels", "600x530 pixels make [(600, 530, 0), (300, 265, 25)]"),
                        ("fewer", "tiles; its levels make")):
        copy = f"{root}-{kind}"
        shutil.copytree(root, copy)
        entry = rewritten(copy, 0, change)
        report = verify.verify_full(copy)
        assert len(report.findings) == 1 and report.findings[0].shard == entry["sha256"], (kind, texts(report))
        assert words in report.findings[0].text and "(mem://0.png)" in report.findings[0].text, (kind, texts(report))
        assert report.looked_at == len(SIDES)


def test_law_tiles_of_another_kind_are_found(root):
    rewritten(root, 0, lambda row, values: values, IngestConfig(codec="jpeg", tile_px=256))
    said = "\n".join(texts(verify.verify_full(root)))
    assert "tile_px 256; the snapshot's config says 128" in said and "codec jpeg; the snapshot's config says png" in said


def test_law_a_snapshot_is_not_written_to(root):
    before = {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in Path(root).rglob("*")}
    verify.verify_full(root)
    assert {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in Path(root).rglob("*")} == before


@pytest.mark.slow
def test_law_a_bucket_is_verified_one_shard_at_a_time(bucket, root, tmp_path, monkeypatch):
    for path in Path(root).rglob("*"):
        if path.is_file():
            storage.put_file(storage.join(bucket, "ds", str(path.relative_to(root))), str(path))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", None)
    most = []
    real = verify.check_photo

    def counting(*args: object) -> None:
        most.append(len(list((tmp_path / "tmp").rglob("*.arrow"))))
        real(*args)

    monkeypatch.setattr(verify, "check_photo", counting)
    report = verify.verify_full(f"{bucket}/ds")
    assert texts(report) == [] and report.looked_at == len(SIDES) and {*most} == {1}
    assert not list((tmp_path / "tmp").rglob("*.arrow"))
    entry = entries_of(root)[0]
    data = bytearray(shard_path(root, entry).read_bytes())
    data[100] ^= 1
    storage.put_atomic(storage.join(bucket, "ds", shards.key(entry["sha256"])), bytes(data))
    (finding,) = verify.verify_full(f"{bucket}/ds").findings
    assert finding.shard == entry["sha256"] and "sha256" in finding.text
