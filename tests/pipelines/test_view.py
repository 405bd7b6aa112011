"""The page in which one zooms into a field: what its server answers, to whom, and what a browser shows."""

import http.client
import io
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from models_at_random import stage_two
from pictures import encoded, picture
from PIL import Image
from stack import until
from torch import nn

from infd import checkpoint
from infd.config import SampleConfig
from infd.config_form import flat
from infd.errors import ConfigError, StackError
from infd.generation.deep_zoom import DeepZoom
from infd.generation.model import load_model
from infd.generation.reconstruct import to_image
from infd.models.autoencoder import Autoencoder
from infd.models.fields import Field
from infd.models.renderers.clif import CLIF
from infd.presets import tiny
from jobs import view
from pipelines.view import Server, Site, open_field, serving


def small_field() -> Field:
    torch.manual_seed(3)
    renderer = CLIF(phi_dim=5, dim=8, blocks=2, groups=4).requires_grad_(False)
    nn.init.normal_(renderer.conv_out.weight, 0, 0.15)
    return Field(torch.randn(1, 5, 7, 6), renderer, patch_px=48)


FIELD = small_field()


@pytest.fixture
def server() -> Iterator[Server]:
    with serving(Site(DeepZoom(FIELD, 2000, 2000), title="a <b> & c")) as (made, _):
        thread = threading.Thread(target=made.serve_forever)
        thread.start()
        yield made
        made.shutdown()
        thread.join()


def answer(server: Server, path: str, *, method: str = "GET", host: str = "") -> tuple[int, str, bytes]:
    """Status, content type, body."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=60)
    try:
        connection.request(method, path, headers={"Host": host} if host else {})
        found = connection.getresponse()
        return found.status, found.headers.get("Content-Type", ""), found.read()
    finally:
        connection.close()


def test_law_the_page_names_the_pyramid_and_loads_nothing_from_elsewhere(server):
    status, kind, body = answer(server, "/")
    page = body.decode()
    assert status == 200 and kind == "text/html; charset=utf-8"
    assert "a &lt;b&gt; &amp; c" in page and "minLevel: 6, maxLevel: 11" in page and "width: 2000, height: 2000" in page
    assert "//" not in page.replace("<!doctype", "")
    status, kind, body = answer(server, "/openseadragon.min.js")
    assert status == 200 and kind.startswith("text/javascript") and b"OpenSeadragon" in body


def test_law_a_tile_is_a_picture_of_its_part(server):
    status, kind, body = answer(server, "/tiles/11/1_2.jpg")
    assert (status, kind) == (200, "image/jpeg")
    found = np.array(Image.open(io.BytesIO(body))).astype(int)
    wanted = np.array(to_image(FIELD.render(2000, 2000, statistics="reference", box=(507, 253, 763, 509))))
    assert found.shape == wanted.shape and np.abs(found - wanted).mean() < 3
    assert answer(server, "/tiles/11/1_2.jpg")[2] == body
    status, _, nothing = answer(server, "/tiles/11/1_2.jpg", method="HEAD")
    assert (status, nothing) == (200, b"")


@pytest.mark.slow
@pytest.mark.parametrize(("path", "status"), [
    ("/tiles/5/0_0.jpg", 404), ("/tiles/12/0_0.jpg", 404), ("/tiles/11/8_0.jpg", 404), ("/tiles/11/0_8.jpg", 404),
    ("/tiles/", 400), ("/tiles/11/-1_0.jpg", 400), ("/tiles/11/1_2.png", 400), ("/tiles/11/1_2.jpg/", 400),
    ("/tiles/11/%31_2.jpg", 400), ("/tiles/11/1" + 20 * "0" + "_0.jpg", 400),
    ("/view.html.j2", 404), ("/../view.py", 404), ("/openseadragon.LICENSE.txt", 404)])
def test_error_requests_for_what_is_not_there(server, path, status):
    assert answer(server, path)[0] == status
    assert answer(server, "/")[0] == 200


def test_error_requests_of_another_host_and_other_methods(server):
    assert answer(server, "/", host="elsewhere.example")[0] == 400
    assert answer(server, "/", host=f"localhost:{server.server_port}")[0] == 200
    assert answer(server, "/", method="POST")[0] == 501
    assert server.server_address[0] == "127.0.0.1"


def test_error_a_port_that_is_taken(server):
    with pytest.raises(StackError, match=f"port {server.server_port}: "), \
            serving(Site(DeepZoom(FIELD, 9, 9), title=""), port=server.server_port):
        raise AssertionError("it was free")


# ---------------------------------------------------------------- the job


@pytest.fixture
def trained(tmp_path) -> str:
    """The address of a checkpoint of the tiny preset, its weights as they were drawn."""
    config = tiny()
    torch.manual_seed(0)
    weights = {f"autoencoder.{name}": value for name, value in Autoencoder(config.model).state_dict().items()}
    uri = str(tmp_path / "checkpoint")
    checkpoint.save(uri, model=weights, train_state={}, meta={"step": 1, "config": flat(config)})
    return uri


def test_error_an_autoencoder_needs_a_photograph(trained, capsys):
    with pytest.raises(ConfigError, match="name a photograph with --image"):
        open_field(trained, seed=7)
    assert view.main([trained, "--seed", "7"]) == 2 and "view: checkpoint" in capsys.readouterr().err
    assert view.main([trained, "--size", "9x"]) == 2


def test_error_wishes_that_a_viewer_cannot_heed(tmp_path, capsys):
    uri = stage_two(tmp_path / "checkpoint")
    for wish, message in ((["--mode", "whole"], "mode=whole: a viewer renders parts"),
                          (["--group", "b"], "group=b: the model has"),
                          (["--sampler", "heun"], "sampler=heun: the denoiser's objective is eps")):
        assert view.main([uri, *wish]) == 2 and message in capsys.readouterr().err


@pytest.mark.slow
def test_job_view_serves_until_it_is_interrupted(trained, tmp_path):
    (tmp_path / "photo.png").write_bytes(encoded(picture(100, 80)))
    command = [sys.executable, "-m", "jobs.view", trained, "--image", str(tmp_path / "photo.png"), "--size", "300x200"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as job:
        assert job.stdout is not None
        address = job.stdout.readline().strip()
        port = int(address.removeprefix("http://127.0.0.1:").removesuffix("/"))
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        connection.request("GET", "/tiles/9/1_0.jpg")
        assert Image.open(io.BytesIO(connection.getresponse().read())).size == (47, 200)
        connection.close()
        job.send_signal(signal.SIGINT)
        assert job.wait(60) == 0 and job.stdout.read() == ""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium on this machine")
def test_law_a_browser_shows_the_render(server, tmp_path):
    """The shot of a headless browser may come before the tiles are drawn; one that draws them wrong is never right."""
    until(lambda: shows_the_render(shot_of(server, tmp_path)), limit_s=120, what="a page that shows the render")


def shot_of(server: Server, folder: Path) -> np.ndarray:
    """float64 (500, 700, 3): the viewer's page."""
    shot = folder / "shot.png"
    subprocess.run(
        ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={folder}/profile",
         "--window-size=700,500", "--virtual-time-budget=8000", f"--screenshot={shot}",
         f"http://127.0.0.1:{server.server_port}/"],
        check=True, capture_output=True, timeout=240, env={**os.environ, "NO_PROXY": "127.0.0.1"})
    with Image.open(shot) as image:
        return np.array(image.convert("RGB")).astype(float)


def shows_the_render(seen: np.ndarray) -> bool:
    """In the middle of a viewport whose height the browser chose."""
    bright = (seen[250] != np.array([0x16, 0x18, 0x1c])).any(-1).nonzero()[0]    # the middle row; the page is dark grey
    if not len(bright):
        return False
    left, side = int(bright[0]), int(bright[-1] - bright[0] + 1)
    if not 300 <= side <= 500:
        return False
    inner, column = side // 2, left + side // 4
    errors = []
    for level_px in (250, 500):                   # the browser shows one of these levels, at another scale
        render = to_image(FIELD.render(level_px, level_px)).resize((side, side), Image.Resampling.BILINEAR)
        middle = np.array(render, float)[side // 4:side // 4 + inner, side // 4:side // 4 + inner]
        errors += [np.abs(seen[first:first + inner, column:column + inner] - middle).mean() for first in range(500 - inner)]
    return bool(min(errors) < 8 < np.median(errors))


def test_law_a_seed_is_shown_as_it_is_generated(tmp_path):
    """A tile of a stage-two checkpoint's seed, against the render of the same seed."""
    uri = stage_two(tmp_path / "checkpoint")
    zoom = DeepZoom(open_field(uri, seed=7, config=SampleConfig(steps=3)), 300, 200, statistics="reference")
    whole = load_model(uri).sample(7, steps=3).render(200, 300, statistics="reference")
    tile = zoom.tile(zoom.last_level, 0, 0)
    assert np.array_equal(tile, np.asarray(to_image(whole))[:tile.shape[0], :tile.shape[1]])
