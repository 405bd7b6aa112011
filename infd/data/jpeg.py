"""The markers of a JPEG stream, read before its decoder allocates or works. Source: ITU-T T.81, annex B."""

import re
import struct
from typing import NamedTuple

from infd.errors import PhotoError

MAX_SCANS = 100
"""Encoders write up to 12 scans. Each scan visits every block, so a few hundred KB of empty scans would take hours."""
MARKER = re.compile(rb"\xff[^\x00\xff]")
AFTER_SCAN = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
FRAMES = {0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF}
PROGRESSIVE = {0xC2, 0xC6, 0xCA, 0xCE}
BARE = {0x01, *range(0xD0, 0xD9)}
"""Markers without a length: TEM, restarts, start of image."""
START_OF_SCAN, END = 0xDA, 0xD9


class Frame(NamedTuple):
    width: int
    height: int
    scans: int
    """1 for a picture in one scan, counted up to MAX_SCANS + 1 for others."""


def frame(data: bytes | memoryview) -> Frame:
    """Sides and number of scans. Raises PhotoError where no frame header stands before the first scan."""
    found, kind, sides, components = MARKER.search(data, 2), 0, None, 0
    while found and found.start() + 4 <= len(data):
        at, marker = found.start(), data[found.start() + 1]
        if marker == START_OF_SCAN and sides and at + 4 < len(data):
            several = kind in PROGRESSIVE or data[at + 4] < components
            return Frame(*sides, _scans(data, at) if several else 1)
        if marker in (START_OF_SCAN, END):
            raise PhotoError("corrupt", "JPEG header")
        if marker in FRAMES and at + 10 <= len(data):
            kind, (height, width, components) = marker, struct.unpack_from(">HHB", data, at + 5)
            sides = width, height
        found = MARKER.search(data, at + 2 + (0 if marker in BARE else _length(data, at)))
    raise PhotoError("truncated", "JPEG header")


def _length(data: bytes | memoryview, at: int) -> int:
    """Bytes of the segment after its marker."""
    return struct.unpack_from(">H", data, at + 2)[0] if at + 4 <= len(data) else 0


def _scans(data: bytes | memoryview, at: int) -> int:
    """Scans from the one at `at` to the end of the picture, at most MAX_SCANS + 1."""
    count = 0
    while data[at + 1] != END and count <= MAX_SCANS:
        count += data[at + 1] == START_OF_SCAN
        found = AFTER_SCAN.search(data, at + 2 + _length(data, at))
        if not found:
            break
        at = found.start()
    return count
