"""Processes that tests start, watch, and ask for their memory."""

import os
import select
import subprocess
import sys
import time
from pathlib import Path


def started(script: str, *arguments: str) -> "subprocess.Popen[bytes]":
    """A Python that runs the file `script`, with tests/ and the repository to import from; stdout is a pipe."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1",
                   "PYTHONPATH": os.pathsep.join([*map(str, Path(__file__).parents[1:3]), *sys.path[1:]])}
    return subprocess.Popen([sys.executable, script, *arguments], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                            env=environment)


def peak_bytes() -> int:
    """The most memory that this process ever held; `ru_maxrss` would count its parent's too."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


class Lines:
    """Lines of a pipe, with a deadline for each."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor, self._read = descriptor, b""

    def next(self, within_s: float) -> bytes | None:
        """The next line; b"" at the end of the pipe; None after `within_s`."""
        until = time.monotonic() + within_s
        while b"\n" not in self._read:
            ready, _, _ = select.select([self._descriptor], [], [], max(0, until - time.monotonic()))
            if not ready:
                return None
            part = os.read(self._descriptor, 1 << 16)
            if not part:
                return b""
            self._read += part
        line, self._read = self._read.split(b"\n", 1)
        return line
