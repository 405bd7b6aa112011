"""A page on this machine in which one zooms into a field; its tiles are rendered when the browser asks for them.

The server listens on 127.0.0.1 alone, and answers only requests that name it so: a page of another site, whose name was
made to lead here, gets nothing. OpenSeadragon (BSD 3-clause, beside the page) shows the tiles.
"""

import functools
import http.server
import io
import logging
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path

from jinja2 import Environment, FileSystemLoader
from PIL import Image

from infd import checkpoint
from infd.compat import plain_float32
from infd.config import Mode, SampleConfig
from infd.errors import ConfigError, StackError
from infd.generation.deep_zoom import DeepZoom, LocalMode
from infd.generation.deep_zoom_files import OVERLAP_PX, TILE_PX
from infd.generation.load import load_autoencoder
from infd.generation.model import load_model
from infd.generation.reconstruct import center_view, field_of
from infd.generation.registry import resolve
from infd.models.autoencoder import Autoencoder
from infd.models.fields import Field
from pipelines.generate import sampled
from pipelines.reconstruct import photo_at

logger = logging.getLogger(__name__)

HOST = "127.0.0.1"
TEMPLATES = Path(__file__).parent / "templates"
SCRIPT = "openseadragon.min.js"
KEPT_TILES = 1024
"""Of about 50 KB each."""
QUALITY = 95


PLAIN = SampleConfig()


def open_field(uri: str, *, image: str = "", seed: int = 0, config: SampleConfig = PLAIN, device: str = "cpu") -> Field:
    """The field of a seed, for a checkpoint of stage two; of the centred square of the photograph `image`, for either.

    Raises CheckpointError, PhotoError, StorageError, and ConfigError where an autoencoder is to make an image of a seed.
    """
    plain_float32()
    uri = resolve(uri)
    if checkpoint.load(uri).meta.get("stage", "autoencoder") == "autoencoder":
        if not image:
            raise ConfigError(f"checkpoint {uri}: an autoencoder makes no images of seeds; name a photograph with --image, "
                              "or a checkpoint of jobs/train_ldm.py")
        return photo_field(load_autoencoder(uri, device=device), image)
    model = load_model(uri, device=device, weights=config.weights)
    return photo_field(model.autoencoder, image) if image else model.field(sampled(model, [seed], config))


def local_mode(mode: Mode) -> LocalMode:
    """Raises ConfigError for a mode in which a tile costs the whole image, or has seams."""
    if mode == "window" or mode == "reference":
        return mode
    raise ConfigError(f"mode={mode}: a viewer renders parts, without seams; use reference or window")


def photo_field(autoencoder: Autoencoder, image: str) -> Field:
    """The field of the centred square of the photograph at an address."""
    lowres_px = autoencoder.lowres_px
    if lowres_px is None:
        raise AssertionError("a loaded autoencoder knows lowres_px")
    return field_of(autoencoder, center_view(photo_at(image, min_side_px=lowres_px)), lowres_px=lowres_px)


class Site:
    """What the server answers: the page, its script, and tiles as JPEG."""

    def __init__(self, zoom: DeepZoom, *, title: str) -> None:
        self._zoom, self._lock = zoom, threading.Lock()
        self.tile = functools.lru_cache(maxsize=KEPT_TILES)(self._tile)
        environment = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True)
        self.page = environment.get_template("view.html.j2").render(
            title=title, width=zoom.width, height=zoom.height, tile_px=TILE_PX, overlap_px=OVERLAP_PX,
            first_level=zoom.first_level, last_level=zoom.last_level).encode()
        self.script = (TEMPLATES / SCRIPT).read_bytes()

    def answer(self, path: str) -> tuple[HTTPStatus, str, bytes]:
        """Status, content type and body for the path of a request."""
        if path == "/":
            return HTTPStatus.OK, "text/html; charset=utf-8", self.page
        if path == f"/{SCRIPT}":
            return HTTPStatus.OK, "text/javascript; charset=utf-8", self.script
        if not path.startswith("/tiles/"):
            return _failure(HTTPStatus.NOT_FOUND, "no such page")
        found = re.fullmatch(r"/tiles/([0-9]{1,3})/([0-9]{1,9})_([0-9]{1,9})\.jpg", path, re.ASCII)
        if found is None:
            return _failure(HTTPStatus.BAD_REQUEST, "expected /tiles/LEVEL/COLUMN_ROW.jpg")
        level, column, row = map(int, found.groups())
        try:
            return HTTPStatus.OK, "image/jpeg", self.tile(level, column, row)
        except LookupError as error:
            return _failure(HTTPStatus.NOT_FOUND, str(error))
        except RuntimeError as error:  # out of memory, say: the browser shows grey, the terminal why
            logger.warning("tile %s: %s", path, error)
            return _failure(HTTPStatus.INTERNAL_SERVER_ERROR, str(error))

    def _tile(self, level: int, column: int, row: int) -> bytes:
        with self._lock:
            pixels = self._zoom.tile(level, column, row)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "JPEG", quality=QUALITY, subsampling=0)
        return buffer.getvalue()


def _failure(status: HTTPStatus, text: str) -> tuple[HTTPStatus, str, bytes]:
    return status, "text/plain; charset=utf-8", f"{text}\n".encode()


def handler(site: Site) -> type[http.server.BaseHTTPRequestHandler]:
    """Of requests to `site`."""
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            port = self.connection.getsockname()[1]
            if self.headers.get("Host") not in (f"{HOST}:{port}", f"localhost:{port}"):
                return self._send(*_failure(HTTPStatus.BAD_REQUEST, f"expected the host {HOST}:{port}"))
            self._send(*site.answer(self.path.partition("?")[0]))

        do_HEAD = do_GET

        def _send(self, status: HTTPStatus, kind: str, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("X-Content-Type-Options", "nosniff")
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            logger.debug(format, *args)

    return Handler


class Server(http.server.ThreadingHTTPServer):
    """A thread a connection; a browser that goes away in the middle of a tile is no error."""

    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        logger.debug("a request broke off", exc_info=True)


@contextmanager
def serving(site: Site, *, port: int = 0) -> Iterator[tuple[Server, str]]:
    """The server, bound and not yet running, and its address. Port 0: a free one. Raises StackError: the port is taken."""
    try:
        server = Server((HOST, port), handler(site))
    except (OSError, OverflowError) as error:
        why = getattr(error, "strerror", None) or error
        raise StackError(f"port {port}: {why}; expected a free one; leave --port out") from error
    with server:
        yield server, f"http://{HOST}:{server.server_port}/"
