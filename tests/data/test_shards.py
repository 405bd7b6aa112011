"""Shards: what goes in comes out, equal rows give equal bytes, damage is found and named."""

import os
import shutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from pictures import encoded, picture

from infd.config import IngestConfig
from infd.data import pyramid, shards
from infd.errors import DatasetError, PhotoError

CONFIG = IngestConfig(codec="png", tile_px=128, min_side_px=64)


def row(seed: int, width: int = 300, height: int = 200) -> dict:
    return shards.photo_row(f"s3://b/a {seed}%é.png", f"tag{seed}", encoded(picture(width, height, seed)), config=CONFIG,
                            group="lr")


def written(path: str, rows: list[dict]) -> str:
    writer = shards.ShardWriter(str(path), CONFIG)
    for one in rows:
        writer.add(one)
    return writer.close()


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    return [row(0), row(1, 64, 500), row(2, 257, 256)]


def test_law_round_trip(tmp_path, rows):
    written(tmp_path / "s.arrow", rows)
    shard = shards.Shard(str(tmp_path / "s.arrow"))
    assert len(shard) == 3 and shard.codec == "png" and shard.tile_px == 128
    for i, expected in enumerate(rows):
        facts, photo = shard.facts(i), shard.photo(i)
        assert facts == {name: expected[name] for name in shards.FACTS}
        assert [bytes(tile) for tile in photo.tiles] == expected["tiles"]
        assert [level._asdict() for level in photo.levels] == expected["levels"]
        assert bytes(photo.lowres) == expected["lowres"]
        pixels = np.asarray(picture(facts["width"], facts["height"], i))
        view = pyramid.View(0, 0, min(facts["width"], facts["height"]))
        patch = pyramid.read_patch(photo, r=view.side, y=5, x=9, h=40, w=50, view=view)
        assert_array_equal(patch, pixels[5:45, 9:59])


def test_law_equal_rows_give_equal_bytes(tmp_path, rows):
    first, second = written(tmp_path / "a", rows), written(tmp_path / "b", rows)
    assert first == second and (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert written(tmp_path / "c", rows[:2]) != first


@pytest.mark.slow
def test_law_lowres_of_the_first_shards_is_in_their_codec(tmp_path, monkeypatch):
    """Their schema says nothing of raw lowres, however large the photo."""
    image = picture(1030, 1024)
    with monkeypatch.context() as old:
        old.setattr(pyramid, "RAW_LOWRES_FROM_PX", float("inf"))
        plain = {key: value for key, value in shards.schema_of(CONFIG).metadata.items() if key != b"raw_lowres_from_px"}
        old.setattr(shards, "schema_of", lambda _: shards.SCHEMA.with_metadata(plain))
        written(tmp_path / "old", [shards.photo_row("a", "", encoded(image), config=CONFIG, group="")])
    written(tmp_path / "new", [shards.photo_row("a", "", encoded(image), config=CONFIG, group="")])
    old_photo, new_photo = (shards.Shard(str(tmp_path / name)).photo(0) for name in ("old", "new"))
    assert (old_photo.lowres_codec, new_photo.lowres_codec) == ("png", "raw")
    assert_array_equal(pyramid.read_lowres(old_photo, 256), pyramid.read_lowres(new_photo, 256))


def test_law_batches_hold_bounded_tiles_or_one_photo(tmp_path, rows, monkeypatch):
    sizes = [sum(map(len, one["tiles"])) for one in rows]
    for most, batches in ((1, [1, 1, 1]), (sizes[0] + sizes[1] - 1, [1, 1, 1]), (sizes[0] + sizes[1], [2, 1])):
        monkeypatch.setattr(shards, "BATCH_BYTES", most)
        written(tmp_path / "s", rows)
        shard = shards.Shard(str(tmp_path / "s"))
        assert [batch.num_rows for batch in shard._batches] == batches
    assert [facts["uri"] for facts in shard] == [one["uri"] for one in rows]
    assert [bytes(t) for t in shard.photo(2).tiles] == rows[2]["tiles"]


def test_law_a_tile_is_a_slice_of_the_mapped_file(tmp_path, rows):
    written(tmp_path / "s", rows)
    shard = shards.Shard(str(tmp_path / "s"))
    tile = shard.photo(0).tiles[1]
    assert isinstance(tile, memoryview)
    offset = (tmp_path / "s").read_bytes().find(rows[0]["tiles"][1])
    with open(tmp_path / "s", "r+b") as file:
        file.seek(offset)
        file.write(b"\0" * 8)
    assert bytes(tile[:8]) == b"\0" * 8  # the change of the file shows: no copy was made


def test_law_split_is_stable_and_has_its_share():
    names = [shards.image_id(str(i).encode()) for i in range(20_000)]
    few = {name for name in names if shards.split_of(name, 0.01) == "val"}
    many = {name for name in names if shards.split_of(name, 0.1) == "val"}
    assert few < many and 140 < len(few) < 260 and 1800 < len(many) < 2200
    assert all(shards.split_of(name, 0.0) == "train" for name in names[:100])


@given(st.floats(0.02, 0.98))
def test_error_a_shard_cut_short_is_named(tmp_path_factory, share):
    folder = tmp_path_factory.getbasetemp() / "whole"
    folder.mkdir(exist_ok=True)
    whole = folder / "whole.arrow"
    if not whole.exists():
        written(whole, [row(7)])
    cut = folder / "cut.arrow"
    cut.write_bytes(whole.read_bytes()[:int(share * whole.stat().st_size)])
    with pytest.raises(DatasetError, match=r"shard cut\.arrow: it cannot be read as an Arrow file"):
        shards.Shard(str(cut))


def test_error_flipped_bits_are_found_by_size_and_hash(tmp_path, rows):
    path = tmp_path / "s.arrow"
    sha256 = written(path, rows)
    size = path.stat().st_size
    shards.require_whole(str(path), sha256, size)
    shutil.copy(path, tmp_path / "bad.arrow")
    with open(tmp_path / "bad.arrow", "r+b") as file:
        file.seek(size // 2)
        byte = file.read(1)[0]
        file.seek(size // 2)
        file.write(bytes([byte ^ 1]))
    with pytest.raises(DatasetError, match=f"shard {sha256}.arrow: the bytes at .* have sha256"):
        shards.require_whole(str(tmp_path / "bad.arrow"), sha256, size)
    os.truncate(path, size - 1)
    with pytest.raises(DatasetError, match=f"shard {sha256}.arrow: {size - 1} bytes at .*; its manifest says {size}"):
        shards.require_whole(str(path), sha256, size)
    with pytest.raises(DatasetError, match="no file at"):
        shards.require_whole(str(tmp_path / "none"), sha256, size)


def test_error_a_damaged_tile_names_shard_row_and_uri(tmp_path, rows):
    broken = {**rows[1], "tiles": [b"\x89PNG" for _ in rows[1]["tiles"]]}
    written(tmp_path / "s.arrow", [rows[0], broken])
    photo = shards.Shard(str(tmp_path / "s.arrow")).photo(1)
    with pytest.raises(DatasetError, match=r"shard s.arrow row 1 \(s3://b/a 1%é.png\): tile 0 cannot be decoded as png"):
        pyramid.read_patch(photo, r=64, y=0, x=0, h=9, w=9, view=pyramid.View(0, 0, 64))


def test_error_a_row_beyond_the_file(tmp_path, rows):
    written(tmp_path / "s.arrow", rows)
    with pytest.raises(DatasetError, match="shard s.arrow row 3: it has 3 rows"):
        shards.Shard(str(tmp_path / "s.arrow")).facts(3)


def test_error_an_arrow_file_of_another_kind(tmp_path):
    import pyarrow as pa

    with pa.OSFile(str(tmp_path / "x"), "wb") as sink, pa.ipc.new_file(sink, pa.schema([("a", pa.int8())])):
        pass
    with pytest.raises(DatasetError, match="shard x: format None; expected infd-shard-1"):
        shards.Shard(str(tmp_path / "x"))


def test_error_a_source_of_too_many_bytes():
    data = encoded(picture(100, 100))
    with pytest.raises(PhotoError, match=f"too_many_bytes: {len(data)} bytes, more than {len(data) - 1}"):
        shards.photo_row("x", "", data, config=IngestConfig(max_bytes=len(data) - 1), group="")
