"""Renders into files: the pixels of `Field.render`, whole files or none, and memory that does not grow."""

import json
import os
import resource
import signal
import sys
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import torch
from data.children import peak_bytes, started
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from infd import storage
from infd.errors import ConfigError, StorageError
from infd.generation import outputs, writers
from infd.generation.deep_zoom_files import write_deep_zoom
from infd.generation.reconstruct import to_image, to_pixels
from infd.generation.render import Picture
from infd.models.renderers.clif import CLIF

METADATA = {"seed": "7", "model": "ab" * 32, "prompt": "a Straße, 山"}


def small_field(*, batch: int = 1, patch_px: int = 16) -> Picture:
    torch.manual_seed(3)
    renderer = CLIF(phi_dim=5, dim=8, blocks=2, groups=4).requires_grad_(False)
    nn.init.normal_(renderer.conv_out.weight, 0, 0.15)
    return Picture(torch.randn(batch, 5, 7, 6), renderer, patch_px=patch_px)


FIELD = small_field()


def pixels(path: Path) -> np.ndarray:
    if path.suffix == ".tif":           # PIL is built without libtiff
        return imagecodecs.tiff_decode(path.read_bytes())
    with Image.open(path) as image:
        assert image.mode == "RGB"
        return np.array(image)


# ---------------------------------------------------------------- pixels


@settings(max_examples=10)
@example(width=1, height=1, tile_px=8, kind="png")
@given(width=st.integers(1, 70), height=st.integers(1, 70), tile_px=st.integers(8, 80), kind=st.sampled_from(["png", "tif"]))
def test_law_a_file_holds_the_pixels_of_the_render(tmp_path_factory, width, height, tile_px, kind):
    path = tmp_path_factory.mktemp("render") / f"a.{kind}"
    assert FIELD.save(str(path), width, height, statistics="window", tile_px=tile_px) == str(path)
    wanted = np.array(to_image(FIELD.render(height, width, statistics="window", tile_px=tile_px)))
    np.testing.assert_array_equal(pixels(path), wanted)
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize("statistics", ["whole", "reference", "tile"])
def test_law_all_statistics_are_those_of_the_render(tmp_path, statistics):
    FIELD.save(str(tmp_path / "a.png"), 50, 40, statistics=statistics, tile_px=16)
    wanted = np.array(to_image(FIELD.render(40, 50, statistics=statistics, tile_px=16)))
    np.testing.assert_array_equal(pixels(tmp_path / "a.png"), wanted)


def test_law_colours_are_rounded_and_clamped():
    rgb = torch.tensor([-2, -1, 0.4 / 127.5 - 1, 0.6 / 127.5 - 1, 254.6 / 127.5 - 1, 7.0])
    assert to_pixels(rgb.expand(3, 1, 6))[0, :, 1].tolist() == [0, 0, 0, 1, 255, 255]


def test_ref_down_is_the_published_way_to_bytes():
    """x * 0.5 + 0.5, clamped, * 255, cut off: for every level's own value and for those around it."""
    levels = np.linspace(-1.01, 1.01, 4001, dtype=np.float32)
    rgb = torch.from_numpy(levels).expand(3, 1, -1)
    half = np.float32(0.5)
    wanted = (np.clip(levels * half + half, 0, 1) * np.float32(255)).astype(np.uint8)
    assert to_pixels(rgb, to_8_bits="down")[0, :, 2].tolist() == wanted.tolist()
    below = to_pixels(rgb).astype(int) - to_pixels(rgb, to_8_bits="down")
    assert set(np.unique(below)) == {0, 1} and 0.45 < below.mean() < 0.55


def test_law_a_jpeg_is_near_the_render(tmp_path):
    FIELD.save(str(tmp_path / "a.jpg"), 90, 70, tile_px=32)
    wanted = np.array(to_image(FIELD.render(70, 90, tile_px=32)))
    assert np.abs(pixels(tmp_path / "a.jpg").astype(int) - wanted).mean() < 3


def test_law_a_tiff_is_big_and_tiled(tmp_path):
    FIELD.save(str(tmp_path / "a.tif"), 300, 280, statistics="tile")
    assert (tmp_path / "a.tif").read_bytes()[:4] == b"II\x2b\x00"       # 43 is BigTIFF
    with Image.open(tmp_path / "a.tif") as image:
        assert image.tag_v2[322] == image.tag_v2[323] == 256 and len(image.tag_v2[324]) == 4  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif"])
def test_law_metadata_come_back(tmp_path, name):
    FIELD.save(str(tmp_path / name), 20, 10, metadata=METADATA)
    with Image.open(tmp_path / name) as image:
        text = image.text["Description"] if name == "a.png" else image.getexif()[270]  # type: ignore[attr-defined]
    assert json.loads(text) == METADATA


@pytest.mark.slow
@pytest.mark.parametrize("size", [(600, 400), (255, 254), (1, 1)])
def test_law_a_deep_zoom_is_the_render_and_its_halves(tmp_path, size):
    width, height = size
    name = FIELD.save_deep_zoom(str(tmp_path / "a"), width, height, statistics="window", tiles="png", metadata=METADATA)
    assert name == str(tmp_path / "a.dzi") and sorted(os.listdir(tmp_path)) == ["a.dzi", "a_files"]
    about = ET.parse(name).getroot()
    space = "{http://schemas.microsoft.com/deepzoom/2008}"
    assert about.find(f"{space}Size").attrib == {"Width": str(width), "Height": str(height)}  # type: ignore[union-attr]
    tile, overlap = int(about.attrib["TileSize"]), int(about.attrib["Overlap"])
    top = (max(size) - 1).bit_length()
    assert sorted(map(int, filter(str.isdigit, os.listdir(tmp_path / "a_files")))) == list(range(top + 1))
    whole = np.zeros((height, width, 3), np.uint8)
    for path in (tmp_path / "a_files" / str(top)).iterdir():
        column, row = map(int, path.stem.split("_"))
        y, x = max(row * tile - overlap, 0), max(column * tile - overlap, 0)
        part = pixels(path)
        whole[y:y + part.shape[0], x:x + part.shape[1]] = part
    np.testing.assert_array_equal(whole, np.array(to_image(FIELD.render(height, width, statistics="window"))))
    assert json.loads((tmp_path / "a_files" / "metadata.json").read_text()) == METADATA


def test_law_a_smaller_deep_zoom_leaves_nothing_of_a_larger_one(tmp_path):
    FIELD.save_deep_zoom(str(tmp_path / "a.dzi"), 600, statistics="tile")
    FIELD.save_deep_zoom(str(tmp_path / "a"), 100, statistics="tile")
    assert sorted(map(int, filter(str.isdigit, os.listdir(tmp_path / "a_files")))) == list(range(8))
    assert sorted(os.listdir(tmp_path)) == ["a.dzi", "a_files"]


@pytest.mark.parametrize("statistics", ["whole", "window", "tile"])
@pytest.mark.parametrize("side", [15, 40])
def test_law_progress_rises_to_its_end(tmp_path, statistics, side):
    seen: list[tuple[int, int]] = []
    FIELD.save(str(tmp_path / "a.png"), side, side + 9, statistics=statistics, tile_px=24,
               progress=lambda done, total: seen.append((done, total)))
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})
    assert seen[-1][0] == seen[-1][1] and len({total for _, total in seen}) == 1


# ---------------------------------------------------------------- whole or not there


@pytest.mark.slow
@pytest.mark.parametrize("deep_zoom", [False, True])
def test_law_a_render_that_fails_leaves_what_was_there(tmp_path, monkeypatch, deep_zoom):
    def write(statistics):
        if deep_zoom:
            FIELD.save_deep_zoom(str(tmp_path / "a"), 400, statistics=statistics, tile_px=32)
        else:
            FIELD.save(str(tmp_path / "a.png"), 400, 400, statistics=statistics, tile_px=32)

    def files():
        return {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    write("tile")
    before, made = files(), []
    forward = FIELD.renderer.forward

    def failing(query, statistics=None):
        made.append(1)
        if len(made) == 150:
            raise RuntimeError("out of memory")
        return forward(query, statistics)

    monkeypatch.setattr(FIELD.renderer, "forward", failing)
    with pytest.raises(RuntimeError, match="out of memory"):
        write("window")
    assert files() == before


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Stands for a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_error_a_full_disk(tmp_path):
    rows = [np.random.default_rng(0).integers(0, 255, (64, 900, 3), dtype=np.uint8)] * 15
    with (files_of_at_most(200_000), pytest.raises(StorageError, match="could not be encoded: .*; expected room on the disk"),
          outputs.whole_file(str(tmp_path / "a.png")) as path):
        writers.write_picture(path, rows, kind="png", height=960, width=900, metadata={})
    with (files_of_at_most(20_000), pytest.raises(StorageError, match="expected a place that can be written; check the disk"),
          outputs.whole_deep_zoom(str(tmp_path / "a")) as path):
        write_deep_zoom(path, rows, height=960, width=900, tiles="jpg", metadata={})
    assert os.listdir(tmp_path) == []


def test_error_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="expected a place that can be written"):
        FIELD.save(str(tmp_path / "file" / "a.png"), 8, 8)


def test_error_endings_sizes_and_batches(tmp_path):
    with pytest.raises(ConfigError, match="a.webp: ending .webp; expected one of .png"):
        FIELD.save(str(tmp_path / "a.webp"), 8, 8)
    with pytest.raises(ConfigError, match="65501 x 8 pixels; a JPEG has at most 65500 a side"):
        FIELD.save(str(tmp_path / "a.jpg"), 65501, 8)
    with pytest.raises(ConfigError, match="tiles=gif: expected jpg or png"):
        FIELD.save_deep_zoom(str(tmp_path / "a"), 8, tiles="gif")
    with pytest.raises(ValueError, match="a field of 2 images: expected one"):
        small_field(batch=2).save(str(tmp_path / "a.png"), 8, 8)
    assert os.listdir(tmp_path) == []


def killed_in_the_middle(path: str) -> None:
    """What the subprocess does: kill itself near the end, after 150 of 169 tiles."""
    field, made = small_field(), []
    forward = field.renderer.forward

    def dying(query, statistics=None):
        made.append(1)
        if len(made) == 150:
            os.kill(os.getpid(), signal.SIGKILL)
        return forward(query, statistics)

    field.renderer.forward = dying
    saving(field, path)(path, 400, 400, statistics="tile", tile_px=32)


def saving(field: Picture, path: str) -> Callable[..., str]:
    """How `path` is written, by its ending."""
    return field.save_deep_zoom if path.endswith(".dzi") else field.save


@pytest.mark.slow
@pytest.mark.parametrize(("name", "made"), [("a.png", {"a.png"}), ("a.dzi", {"a.dzi", "a_files"})])
def test_law_a_killed_render_leaves_no_file_and_the_next_one_cleans_up(tmp_path, name, made):
    path = str(tmp_path / name)
    assert started(__file__, "kill", path).wait(120) == -signal.SIGKILL
    (left,) = tmp_path.iterdir()                     # neither a picture nor tiles
    assert left.name.startswith(".a.") and left.name.endswith(storage.PARTIAL)
    saving(FIELD, path)(path, 20, 20)
    assert left.exists()                            # too young to tell it from one that has just begun
    long_ago = time.time() - 2 * storage.YOUNG_S
    os.utime(left, (long_ago, long_ago))
    saving(FIELD, path)(path, 20, 20)
    assert set(os.listdir(tmp_path)) == made


def test_law_the_scratch_folder_of_a_living_render_stays(tmp_path):
    path = str(tmp_path / "a.png")
    with outputs.scratch_for(path) as folder:
        long_ago = time.time() - 2 * storage.YOUNG_S
        os.utime(folder, (long_ago, long_ago))
        FIELD.save(path, 20, 20)
        assert os.path.isdir(folder)
    assert os.listdir(tmp_path) == ["a.png"]


def test_error_an_encoder_that_fails_otherwise_is_told(tmp_path, monkeypatch):
    """What goes wrong in its thread is raised here, whatever it is."""
    def no_memory(*args: object, **more: object) -> None:
        raise MemoryError("the encoder's")

    monkeypatch.setattr(writers.vips().Image, "pngload_source", no_memory)
    with pytest.raises(MemoryError, match="the encoder's"):
        FIELD.save(str(tmp_path / "a.png"), 20, 20)
    assert os.listdir(tmp_path) == []


@pytest.mark.slow
def test_law_renders_go_to_a_bucket(bucket, tmp_path):
    FIELD.save(str(tmp_path / "a.png"), 50, 40, metadata=METADATA)
    assert FIELD.save(f"{bucket}/a.png", 50, 40, metadata=METADATA) == f"{bucket}/a.png"
    assert storage.read_bytes(f"{bucket}/a.png") == (tmp_path / "a.png").read_bytes()
    FIELD.save_deep_zoom(f"{bucket}/zoom", 600)
    FIELD.save_deep_zoom(f"{bucket}/zoom", 300)
    FIELD.save_deep_zoom(str(tmp_path / "zoom"), 300)
    names = {info.uri.removeprefix(f"{bucket}/") for info in storage.list_objects(bucket)}
    assert names == {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}


# ---------------------------------------------------------------- memory


def print_peak(path: str, side: str, mode: str) -> None:
    """What the subprocess does."""
    torch.set_num_threads(1)
    field = small_field(patch_px=64)
    saving(field, path)(path, int(side), int(side), statistics=mode)
    print(peak_bytes())


def peak_of(path: Path, side: int, mode: str = "window") -> int:
    worker = started(__file__, "peak", str(path), str(side), mode)
    out, _ = worker.communicate(timeout=3600)
    assert worker.returncode == 0
    return int(out)


@pytest.mark.slow
def test_law_memory_does_not_grow_with_the_render(tmp_path):
    """2048 x 2048 RGB pixels in float32 would be 50 MB, and those of 1024 x 1024 a quarter of it."""
    assert peak_of(tmp_path / "a.png", 2048) - peak_of(tmp_path / "a.png", 1024) < 25_000_000


@pytest.mark.long
@pytest.mark.timeout(7200)
@pytest.mark.parametrize(("name", "mode"), [
    ("a.png", "reference"), ("a.tif", "reference"), ("a.jpg", "reference"), ("a.dzi", "reference"), ("a.png", "window")])
def test_law_memory_of_16384_is_within_a_fifth_of_that_of_4096(tmp_path, name, mode):
    """What grows is a band of tiles; of a Deep Zoom pyramid two rows of tiles a level; of windows what is known of each."""
    assert peak_of(tmp_path / name, 16384, mode) < 1.2 * peak_of(tmp_path / name, 4096, mode)


if __name__ == "__main__":
    {"kill": killed_in_the_middle, "peak": print_peak}[sys.argv[1]](*sys.argv[2:])
