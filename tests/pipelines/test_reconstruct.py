"""Reconstruction of files: messages that name the file, and pictures that do not overwrite each other."""

import pickle

import numpy as np
import pytest
import torch
from pictures import encoded, picture
from PIL import Image

from infd import checkpoint
from infd.config_form import flat
from infd.errors import ConfigError, PhotoError
from infd.generation.reconstruct import DEEP_PX, PANEL, ZOOM, compare, deep_zoom, sheet, subject, view_of
from infd.generation.reconstruct import reconstruct as renders
from infd.models.autoencoder import Autoencoder
from infd.models.fields import Field
from infd.presets import tiny
from jobs import reconstruct
from pipelines.reconstruct import reconstruct_files


@pytest.fixture
def trained(tmp_path) -> str:
    """The address of a checkpoint of the tiny preset, its weights as they were drawn."""
    config = tiny()
    torch.manual_seed(0)
    weights = {f"autoencoder.{name}": value for name, value in Autoencoder(config.model).state_dict().items()}
    uri = str(tmp_path / "checkpoint")
    checkpoint.save(uri, model=weights, train_state={}, meta={"step": 1, "config": flat(config)})
    return uri


@pytest.mark.slow
@pytest.mark.parametrize(("data", "reason"), [(b"words", "unsupported"), (encoded(picture(9, 9)), "too_small")])
def test_error_a_file_that_is_no_photo_is_named_with_its_reason(trained, tmp_path, capsys, data, reason):
    path = tmp_path / "a file.png"
    path.write_bytes(data)
    with pytest.raises(PhotoError) as caught:
        list(reconstruct_files(trained, [str(path)], sizes=[8], out=str(tmp_path / "out")))
    assert str(caught.value).startswith(f"{path}: {reason}: ") and caught.value.reason == reason
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    assert reconstruct.main([trained, str(path), "--sizes", "8", "--out", str(tmp_path / "out")]) == 1
    assert f"reconstruct: {path}: {reason}" in capsys.readouterr().err


def test_error_two_images_of_one_name_are_refused_before_anything_is_written(trained, tmp_path):
    paths = [tmp_path / "one" / "photo.png", tmp_path / "two" / "photo.jpg"]
    for path in paths:
        path.parent.mkdir()
        path.write_bytes(encoded(picture(100, 80)))
    with pytest.raises(ConfigError, match="photo-SIZE.png") as caught:
        list(reconstruct_files(trained, [str(path) for path in paths], sizes=[8], out=str(tmp_path / "out")))
    assert all(str(path) in str(caught.value) for path in paths)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_law_each_image_has_its_own_pictures(trained, tmp_path):
    for seed, name in enumerate(("a.png", "b.png")):
        (tmp_path / name).write_bytes(encoded(picture(100, 80, seed)))
    written = list(reconstruct_files(trained, [str(tmp_path / "a.png"), str(tmp_path / "b.png")], sizes=[24],
                                     out=str(tmp_path / "out")))
    first, second = (np.asarray(Image.open(path)) for path in written[:2])
    assert len(written) == 3 and first.shape == (24, 24, 3) and not np.array_equal(first, second)


def untrained() -> Autoencoder:
    network = Autoencoder(tiny().model).eval()
    network.patch_px = tiny().crop.patch_px
    return network


def test_law_a_photo_is_encoded_once_and_rendered_size_by_size(monkeypatch):
    autoencoder, done = untrained(), []
    encode, render = Autoencoder.encode, Field.render
    monkeypatch.setattr(Autoencoder, "encode", lambda *args: done.append("encode") or encode(*args))
    monkeypatch.setattr(Field, "render", lambda *args: done.append("render") or render(*args))
    seen = [(size, image.size, list(done))
            for size, image in renders(autoencoder, picture(100, 80), [8, 24], lowres_px=64)]
    assert seen == [(8, (8, 8), ["encode", "render"]), (24, (24, 24), ["encode", "render", "render"])]


def busy_corner(r: int, y: int, x: int, size: int, /) -> Image.Image:
    """A view, grey but for noise of amplitude 100 at 0.75 to 0.8 of both axes."""
    rows, columns = ((np.arange(size) + start + 0.5) / r for start in (y, x))
    inside = ((rows >= 0.75) & (rows < 0.8))[:, None] & ((columns >= 0.75) & (columns < 0.8))
    noise = np.random.default_rng(0).integers(28, 228, (size, size))
    return Image.fromarray(np.where(inside, noise, 128).astype(np.uint8)).convert("RGB")


@pytest.mark.slow
def test_law_panels_of_a_giant_photograph_hold_no_more_than_they_show(monkeypatch):
    """A side of 30,000: no part of it, and no render, is larger than most_px or the zoom's view."""
    asked, rendered, native, render = [], [], 30_000, Field.render

    def view(r: int, y: int, x: int, size: int, /) -> Image.Image:
        asked.append(size)
        return busy_corner(r, y, x, size)

    def recorded(self, height, width, **options):
        out = render(self, height, width, **options)
        rendered.append((height, *out.shape[-2:]))
        return out

    monkeypatch.setattr(Field, "render", recorded)
    seen = subject(untrained(), view, native=native, lowres_px=64)
    panels = [*compare(seen, most_px=300), *deep_zoom(seen)]
    assert max(asked) <= PANEL * ZOOM
    assert rendered == [(256, 256, 256), (300, 300, 300), (PANEL * ZOOM, PANEL, PANEL), (native, DEEP_PX, DEEP_PX)]
    assert [panel.label.split(":")[0] for panel in panels] == [
        "input 64", "photograph", "render 256", "render 300 of native 30000", "photograph x4", "render x4",
        "128 px of native 30000", "render of them"]
    assert sheet([panels]).width == 8 * (PANEL + 8) + 8


@pytest.mark.slow
@pytest.mark.parametrize("native", [200, 1000, 5000])
def test_the_deep_zoom_is_where_most_is_to_be_seen(native):
    seen = subject(untrained(), busy_corner, native=native, lowres_px=64)
    pixels = np.asarray(deep_zoom(seen)[0].image, np.float32)
    assert pixels.shape == (DEEP_PX, DEEP_PX, 3) and (pixels != 128).mean() > 0.5 * min(1, 0.05 * native / DEEP_PX) ** 2


def test_law_a_view_of_an_image_is_its_centred_square_resized():
    image = picture(300, 200)
    view, square = view_of(image), np.asarray(image)[:, 50:250]
    np.testing.assert_array_equal(np.asarray(view(200, 0, 0, 200)), square)
    np.testing.assert_array_equal(np.asarray(view(200, 20, 30, 40)), square[20:60, 30:70])
    np.testing.assert_array_equal(np.asarray(view(100, 5, 6, 50)), np.asarray(view(100, 0, 0, 100))[5:55, 6:56])
