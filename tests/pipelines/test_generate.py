"""Seeds to images: the same whoever makes them, made once, resumable; details are parts of the image; bad wishes refused."""

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest
from models_at_random import stage_two
from PIL import Image

from infd.config import SampleConfig
from infd.errors import CheckpointError, ConfigError
from infd.generation.model import load_model
from infd.generation.reconstruct import to_image
from jobs import generate as job
from pipelines.generate import Size, Zoom, generate, grid, squared

QUICK = SampleConfig(steps=2)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return stage_two(tmp_path_factory.mktemp("model") / "checkpoint")


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"), np.int16)


def made(model: str, out: Path, *, count: int = 3, first: int = 0, sizes: tuple[str, ...] = ("48", "70x40"),
         **more: object) -> Path:
    generate(model, seeds=range(first, first + count), sizes=[Size.of(size) for size in sizes], out=str(out), ray=False,
             **{"config": QUICK, **more})  # pyright: ignore
    return out


def test_law_a_seed_is_one_image_at_every_size_whatever_is_made_beside_it(model, tmp_path):
    together, alone = made(model, tmp_path / "together"), made(model, tmp_path / "alone", first=1, count=1)
    names = {path.name for path in together.glob("seed-*.png")}
    assert names == {f"seed-{seed:08d}-{size}.png" for seed in range(3) for size in ("48x48", "70x40")}
    for name in ("seed-00000001-48x48.png", "seed-00000001-70x40.png"):
        assert np.abs(pixels(together / name) - pixels(alone / name)).max() <= 1
    assert np.abs(pixels(together / "seed-00000000-48x48.png") - pixels(together / "seed-00000001-48x48.png")).max() > 8
    assert pixels(together / "seed-00000001-70x40.png").shape == (40, 70, 3)
    assert {path.name for path in (together / "small").iterdir()} == names
    with Image.open(together / "sheet.png") as sheet:
        assert sheet.width > 3 * 256


def test_law_images_that_are_there_are_kept_and_the_rest_is_made(model, tmp_path):
    out = made(model, tmp_path / "out", count=2)
    kept = out / "seed-00000000-48x48.png"
    before = kept.read_bytes()
    gone = (out / "seed-00000001-70x40.png").read_bytes()
    (out / "seed-00000001-70x40.png").unlink()
    stamp = kept.stat().st_mtime_ns
    made(model, out / "below", count=3)                            # another run's images are not ours
    made(model, out, count=3)
    assert kept.stat().st_mtime_ns == stamp and kept.read_bytes() == before
    assert (out / "seed-00000001-70x40.png").read_bytes() == gone and len(list(out.glob("seed-*.png"))) == 6


def test_images_say_what_they_are(model, tmp_path):
    out = made(model, tmp_path / "out", count=1, sizes=("48",))
    with Image.open(out / "seed-00000000-48x48.png") as image:
        told = json.loads(image.info["Description"])
    assert told["seed"] == "0" and told["size"] == "48x48" and told["model_sha256"] == load_model(model).sha256
    assert json.loads(told["config"])["steps"] == 2 and json.loads((out / "run.json").read_text())["checkpoint"] == model


@pytest.mark.parametrize("mode", ["reference", "window", "whole"])
def test_law_a_detail_is_a_part_of_the_image(model, tmp_path, mode):
    """Of the image with the same statistics, which for `whole` are those of the image at the detail's own size."""
    config = dataclasses.replace(QUICK, mode=mode)
    detail = made(model, tmp_path / "detail", count=1, sizes=("48",), config=config, zoom=Zoom.of("0.25,0.5,0.25"))
    part = pixels(detail / "seed-00000000-zoom-0.25-0.5-0.25-48x48.png")
    field = load_model(model).sample(0, steps=2)
    whole = field.render(192, 192, statistics=field.statistics(48, 48) if mode == "whole" else mode)
    assert np.abs(part - np.asarray(to_image(whole), np.int16)[48:96, 96:144]).max() <= 1


def test_error_a_folder_of_other_images_is_left_alone(model, tmp_path):
    out = made(model, tmp_path / "out", count=1)
    with pytest.raises(ConfigError, match="steps was 2 and is 3.*name another --out"):
        made(model, out, config=SampleConfig(steps=3))


def test_job_grid_is_one_page(model, tmp_path, capsys):
    assert job.main([model, "--count", "9", "--grid", "--out", str(tmp_path), "--steps", "2"]) == 0
    with Image.open(capsys.readouterr().out.strip()) as page:
        assert page.width > 8 * 256 and page.height > 2 * 256
    assert {path.name for path in tmp_path.iterdir()} == {"grid.png"}
    assert grid(model, seeds=[3], out=str(tmp_path / "one"), config=QUICK).endswith("grid.png")


@pytest.mark.parametrize(("arguments", "message"), [
    (["--size", "3000*2000"], "size=3000.2000: expected a number of pixels, or WIDTHxHEIGHT"),
    (["--zoom", "0.5,0.5,0.6"], "must lie inside the image"),
    (["--zoom", "1,2"], "expected y,x,side"),
    (["--group", "b"], r"group=b: the model has the classes \[\]"),
    (["--sampler", "heun"], "sampler=heun: the denoiser's objective is eps; use ddpm or ddim or dpm or unipc"),
    (["--steps", "1500"], "steps=1500: must lie in 1 to 1000"),
    (["--guidance", "7"], "guidance=7: must be 1; the model was trained without a condition"),
    (["--count", "0"], "at least one seed and one size"),
])
def test_error_wishes_that_cannot_be(model, tmp_path, capsys, arguments, message):
    assert job.main([model, "--out", str(tmp_path / "out"), "--no-ray", "--steps", "2", *arguments]) in (1, 2)
    error = capsys.readouterr().err
    assert re.search(message, error.splitlines()[-1]) and "Traceback" not in error
    assert not (tmp_path / "out").exists()                         # so that the command, mended, is not refused there


@pytest.mark.parametrize(("uri", "message"), [
    ("models:/name", "expected models:/NAME@best"), ("models:/name@best", "MLFLOW_TRACKING_URI is not set")])
def test_error_names_that_no_registry_has(monkeypatch, uri, message):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(CheckpointError, match=message):
        load_model(uri)


def test_law_images_on_a_sheet_fill_their_place_in_whole_pixels():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 250, (30, 40, 3), np.uint8))
    place = np.asarray(squared(image))
    grown = np.asarray(image).repeat(6, 0).repeat(6, 1)
    np.testing.assert_array_equal(place[38:38 + 180, 8:8 + 240], grown)
    assert place[:38].min() == place[218:].min() == place[:, :8].min() == place[:, 248:].min() == 255
    large = np.asarray(squared(Image.new("RGB", (1024, 512), "navy")))
    assert large[64:192].max() == 128 and large[:64].min() == large[192:].min() == 255
