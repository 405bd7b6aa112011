"""Rows of pixels into PNG, JPEG or tiled BigTIFF, as they come: never the whole picture in memory.

libvips encodes in a thread of its own. It reads its input from a pipe, as a PNG that is stored and not compressed, which
is the plainest stream of pixels that it takes; so rendering and encoding go on at once, and a full pipe makes the
faster one wait.

Shapes: H W the picture, h some rows of it.
"""

import functools
import json
import os
import struct
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from infd.errors import ConfigError, StorageError

PIECE_ROWS = 16
"""Rows that go into the pipe at once."""
JPEG_MOST_PX = 65_500
"""Largest side of a JPEG."""
FORMATS = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".tif": "tiff", ".tiff": "tiff"}
JPEG_QUALITY = 95
TIFF_TILE_PX = 256


def format_of(uri: str, *, height: int, width: int) -> str:
    """png, jpeg or tiff, by the ending. Raises ConfigError for another ending, or a JPEG that cannot be so large."""
    ending = os.path.splitext(uri)[1].lower()
    if ending not in FORMATS:
        raise ConfigError(f"{uri}: ending {ending or 'none'}; expected one of {', '.join(FORMATS)}")
    if FORMATS[ending] == "jpeg" and max(height, width) > JPEG_MOST_PX:
        raise ConfigError(f"{uri}: {width} x {height} pixels; a JPEG has at most {JPEG_MOST_PX} a side; write a .png or .tif")
    return FORMATS[ending]


def write_picture(path: str, rows: Iterable[np.ndarray], *, kind: str, height: int, width: int,
                  metadata: Mapping[str, str]) -> None:
    """Write rows, uint8 (h, W, 3) from top to bottom, H in all, to the local file `path`.

    `kind` is of `format_of`. The metadata become one JSON text: in a PNG the text `Description`, in JPEG and TIFF the tag
    ImageDescription (270). Raises StorageError where the encoder fails; what stands at `path` is then of no use.
    """
    text = json.dumps(dict(metadata), sort_keys=True)

    def save(image: Any) -> None:
        gstr = vips().GValue.gstr_type
        if kind == "png":
            image.set_type(gstr, "png-comment-0-Description", text)
            image.pngsave(path, compression=6, filter="paeth")
        elif kind == "jpeg":
            image.set_type(gstr, "exif-ifd0-ImageDescription", text)
            image.jpegsave(path, Q=JPEG_QUALITY, subsample_mode="off")
        else:
            image.set_type(gstr, "image-description", text)
            image.tiffsave(path, bigtiff=True, tile=True, tile_width=TIFF_TILE_PX, tile_height=TIFF_TILE_PX,
                           compression="deflate", predictor="horizontal")

    encode(rows, save, height=height, width=width)


def encode(rows: Iterable[np.ndarray], save: Callable[[Any], None], *, height: int, width: int) -> None:
    """Call `save` in a thread with a libvips image that reads rows, uint8 (h, W, 3), as they are made in this one.

    An error in making the rows is raised as it is, once the thread has ended. Raises StorageError where `save` fails.
    """
    reading, writing = os.pipe()
    failures: list[Exception] = []

    def encoding() -> None:
        try:
            source = vips().Source.new_from_descriptor(reading)
            save(vips().Image.pngload_source(source, access="sequential", fail_on="truncated").copy())
        except Exception as error:  # told in the thread that waits
            failures.append(error)
        finally:
            while os.read(reading, 1 << 20):  # so that who writes never waits for one that has stopped reading
                pass
            os.close(reading)

    thread = threading.Thread(target=encoding, name="infd-encoder")
    thread.start()
    try:
        with open(writing, "wb", buffering=0) as pipe:
            for piece in stored_png(rows, height=height, width=width):
                if failures:
                    break
                _write_all(pipe.fileno(), piece)
    finally:
        thread.join()
    for failure in failures:
        if not isinstance(failure, vips().Error):
            raise failure
        told = " ".join(str(failure).split())
        raise StorageError(f"the picture could not be encoded: {told}; expected room on the disk; make room") from failure


def stored_png(rows: Iterable[np.ndarray], *, height: int, width: int) -> Iterator[bytes]:
    """The bytes of an RGB PNG without compression, piece by piece."""
    yield b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    stored = zlib.compressobj(0)
    for band in rows:
        for first in range(0, len(band), PIECE_ROWS):
            piece = band[first:first + PIECE_ROWS]
            lines = np.zeros((len(piece), 1 + 3 * width), np.uint8)     # a 0 before each line: no filter
            lines[:, 1:] = piece.reshape(len(piece), -1)
            yield _chunk(b"IDAT", stored.compress(lines.tobytes()))
    yield _chunk(b"IDAT", stored.flush()) + _chunk(b"IEND", b"")


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(data, zlib.crc32(name)))


def _write_all(handle: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(handle, view):]


@functools.cache
def vips() -> Any:
    """pyvips, loaded on first use. One thread encodes, and no result is kept: memory then stays small."""
    os.environ.setdefault("VIPS_CONCURRENCY", "1")
    import pyvips

    pyvips.cache_set_max(0)
    return pyvips
