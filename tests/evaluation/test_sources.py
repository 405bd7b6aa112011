"""Sources: sorted, upright, streamed; what cannot be read is named."""

import threading
from pathlib import Path

import numpy as np
import pytest
from evaluation.folders import folder, opened
from pictures import encoded, picture
from PIL import Image

from infd import storage
from infd.config import IngestConfig
from infd.data.snapshot import write_dataset
from infd.errors import DatasetError, PhotoError, PreconditionFailed
from infd.evaluation import sources
from infd.evaluation.errors import EvaluationError
from infd.evaluation.sources import FolderSource, Sides, in_order, open_source


def test_law_files_come_sorted_at_any_depth_and_other_files_are_passed_over(tmp_path):
    folder(tmp_path, [(20, 30)] * 2)
    folder(tmp_path / "deeper", [(24, 24)], kind="jpeg", seed=7)
    folder(tmp_path / "Z", [(25, 25)], kind="webp", seed=8)
    (tmp_path / "README.txt").write_text("not an image")
    source = open_source(str(tmp_path))
    assert [source.name(index) for index in range(len(source))] == [
        "Z/img000.webp", "deeper/img000.jpeg", "img000.png", "img001.png"]
    assert source.sides(0) == (25, 25) and source.sides(2) == Sides(20, 30) and source.sides(2).short == 20
    np.testing.assert_array_equal(source.read(3), opened(tmp_path / "img001.png"))
    assert source.describe()["images"] == 4


def test_law_the_fingerprint_is_of_the_content_in_order(tmp_path):
    one = folder(tmp_path / "one", [(20, 20)] * 3)
    two = folder(tmp_path / "two", [(20, 20)] * 3)
    for file in sorted(two.iterdir()):
        file.rename(file.with_name(f"other-{file.name}"))
    prints = [FolderSource(str(root)).fingerprint() for root in (one, two)]
    assert prints[0] == prints[1]
    last = sorted(two.iterdir())[-1]
    last.rename(two / "a-first.png")
    assert FolderSource(str(two)).fingerprint() != prints[0]
    (one / "img002.png").write_bytes(encoded(picture(20, 20, 50)))
    assert FolderSource(str(one)).fingerprint() != prints[0]


def test_law_patches_are_those_of_the_whole_view_by_lanczos(tmp_path):
    folder(tmp_path, [(61, 40)])
    source = FolderSource(str(tmp_path))
    image = opened(tmp_path / "img000.png")
    for offset, left in (("center", 10), (0.0, 0), (1.0, 21)):
        view = Image.fromarray(image[:, left:left + 40])
        whole = np.asarray(view.resize((24, 24), Image.Resampling.LANCZOS))
        np.testing.assert_array_equal(source.patch(0, side=24, y=3, x=5, p=16, offset=offset), whole[3:19, 5:21])
    np.testing.assert_array_equal(source.patch(0, side=40, y=1, x=2, p=30), image[1:31, 12:42])


def test_law_sides_are_those_of_the_upright_image(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "turned.jpg").write_bytes(encoded(picture(40, 20), "JPEG", exif=exif))
    (tmp_path / "zz.tiff").write_bytes(encoded(picture(33, 21), "TIFF"))
    source = FolderSource(str(tmp_path))
    assert source.sides(0) == (20, 40) and source.read(0).shape == (40, 20, 3)
    assert source.sides(1) == (33, 21) and source.read(1).shape == (21, 33, 3)


@pytest.mark.parametrize(("damage", "reason"), [(lambda data: data[:300], "truncated"), (lambda data: b"", "empty"),
                                                (lambda data: b"words", "unsupported")])
def test_error_a_corrupt_file_is_named(tmp_path, damage, reason):
    folder(tmp_path, [(60, 60)] * 3)
    file = tmp_path / "img001.png"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(PhotoError, match=f"img001.png: {reason}: .*expected an image; mend it or take it away"):
        source = FolderSource(str(tmp_path))
        source.fingerprint()
        source.read(1)


def test_error_a_file_that_changes_meanwhile(tmp_path):
    folder(tmp_path, [(20, 20)])
    source = FolderSource(str(tmp_path))
    source.fingerprint()
    (tmp_path / "img000.png").write_bytes(encoded(picture(30, 30)))
    with pytest.raises(PreconditionFailed, match="img000.png: it changed after it was listed"):
        source.read(0)


def test_error_nothing_there_and_splits_of_a_folder(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(EvaluationError, match="no image file there, and no dataset, .*; expected .* that end in .jpg"):
        open_source(str(tmp_path))
    with pytest.raises(EvaluationError, match="split val was asked for; only a dataset has splits"):
        open_source(str(tmp_path), split="val")
    with pytest.raises(DatasetError, match="no such snapshot"):
        open_source(f"{tmp_path}@3")


def test_error_nothing_is_enlarged(tmp_path):
    folder(tmp_path, [(40, 30)])
    with pytest.raises(EvaluationError, match="img000.png: 40x30; side 31 was asked for and nothing is enlarged"):
        FolderSource(str(tmp_path)).patch(0, side=31, y=0, x=0, p=16)


# ---------------------------------------------------------------- datasets


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> str:
    root = tmp_path_factory.mktemp("data")
    config = IngestConfig(tile_px=64, codec="png", min_side_px=32, val_fraction=0.4)
    files = [(f"s3://b/photos/p{index}.png", encoded(picture(96 + index, 80, index))) for index in range(8)]
    return write_dataset(files, str(root / "set"), config).snapshot_uri


def test_law_a_dataset_gives_its_photos_by_split(dataset, tmp_path):
    whole, train, val = (open_source(dataset, split=split) for split in ("all", "train", "val"))
    assert len(whole) == 8 == len(train) + len(val) and len(val) > 0
    assert whole.name(0).endswith(".png") and "/" not in whole.name(0)
    names = {whole.name(index) for index in range(8)}
    assert names == {f"p{index}.png" for index in range(8)}
    assert {train.name(index) for index in range(len(train))}.isdisjoint({val.name(index) for index in range(len(val))})
    assert len({source.fingerprint() for source in (whole, train, val)}) == 3
    assert open_source(dataset.rpartition("@")[0]).fingerprint() == whole.fingerprint()
    assert whole.describe()["uri"] == dataset


def test_law_a_datasets_patches_are_those_of_the_files(dataset, tmp_path):
    source = open_source(dataset)
    index = next(index for index in range(8) if source.name(index) == "p3.png")
    (tmp_path / "p3.png").write_bytes(encoded(picture(99, 80, 3)))
    file = FolderSource(str(tmp_path))
    np.testing.assert_array_equal(source.patch(index, side=80, y=5, x=9, p=40), file.patch(0, side=80, y=5, x=9, p=40))
    near = source.patch(index, side=50, y=4, x=4, p=40).astype(int) - file.patch(0, side=50, y=4, x=4, p=40)
    assert np.abs(near).max() <= 2
    assert sorted(source.sides(index)) == sorted(file.sides(0))


def test_error_a_datasets_photos_that_are_not_square(dataset):
    with pytest.raises(EvaluationError, match=r"set@1 row 0 \(p0.png\): \d+x80; a dataset's photos are read as squares"):
        open_source(dataset).read(0)
    with pytest.raises(EvaluationError, match="row 0 .p0.png.: .*side 81 was asked for and nothing is enlarged"):
        open_source(dataset).patch(0, side=81, y=0, x=0, p=16)


# ---------------------------------------------------------------- reading ahead


def test_law_reading_ahead_keeps_the_order_and_a_bound():
    most, lock = 0, threading.Lock()
    seen: list[int] = []

    def one(item: int) -> int:
        nonlocal most
        with lock:
            most = max(most, item - 3 - len(seen))
        return item * item

    for value in in_order(one, range(3, 40), threads=3):
        seen.append(value)
    assert seen == [item * item for item in range(3, 40)]
    assert most <= 2 * 3
    assert list(in_order(one, range(0), threads=3)) == []


def test_law_memory_holds_few_images(tmp_path, monkeypatch):
    folder(tmp_path, [(16, 16)] * 40)
    source, read = FolderSource(str(tmp_path)), []
    monkeypatch.setattr(storage, "read_object", lambda info: read.append(info.uri) or Path(info.uri).read_bytes())
    monkeypatch.setattr(sources, "SCAN_THREADS", 2)
    images = in_order(source.read, range(40), threads=2)
    next(images)
    assert len(read) <= 5
    images.close()
