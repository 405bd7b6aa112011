"""A proxy before an S3 server that harms a share of what goes through it, as networks and loaded stores do.

Every request draws its fate from one seeded generator, so a run with one client thread is the same each time; with
several threads the faults are the same and meet other requests. Requests go on as they came, Host and all: S3's
signatures cover it.
"""

import http.client
import random
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

FAULTS = ("500", "503", "reset", "lost", "truncated", "headless", "flipped", "delay")
"""500 and 503 without asking the server; the connection reset before the request is passed on, or after it was obeyed
(its answer is lost); half of an answer's body; its status line alone; an answer's body with a wrong bit; an answer
DELAY_S late."""
DELAY_S = 2.0
CODES = {"500": "InternalError", "503": "SlowDown"}
HOP = {"connection", "transfer-encoding", "keep-alive"}


class Faults:
    """What is harmed, how often, and what happened so far. While `down` is set every request is answered by a reset."""

    def __init__(self, seed: int, share: float, kinds: tuple[str, ...] = FAULTS, delay_s: float = DELAY_S) -> None:
        self.share, self.kinds, self.delay_s = share, kinds, delay_s
        self.injected: Counter[str] = Counter()
        self.requests: Counter[str] = Counter()
        self.down = threading.Event()
        self.refused = 0
        self._random, self._lock = random.Random(seed), threading.Lock()
        self._forced: list[tuple[str, str, str]] = []

    def force(self, kind: str, method: str, path: str) -> None:
        """Harm the next request of `method` whose path and query hold `path`."""
        with self._lock:
            self._forced.append((kind, method, path))

    def draw(self, method: str, path: str) -> str:
        """The fate of one request: a kind of fault, or ''."""
        with self._lock:
            self.requests[method] += 1
            kind = self._random.choice(self.kinds) if self._random.random() < self.share else ""
            for forced in self._forced:
                if forced[1] == method and forced[2] in path:
                    self._forced.remove(forced)
                    kind = forced[0]
                    break
            if kind == "flipped" and method != "GET":
                kind = ""
            if kind:
                self.injected[kind] += 1
            return kind


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: "Server"

    def do(self) -> None:
        faults = self.server.faults
        if faults.down.is_set():
            faults.refused += 1
            return self.reset()
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        kind = faults.draw(self.command, self.path)
        if kind in CODES:
            return self.refuse(int(kind), CODES[kind])
        if kind == "reset":
            return self.reset()
        if kind == "delay":
            time.sleep(faults.delay_s)
        status, headers, answer = self.passed_on(body)
        if kind == "lost":
            return self.reset()
        if kind == "flipped" and answer:
            answer = bytearray(answer)
            answer[len(answer) // 2] ^= 4
        if kind == "headless" or (kind == "truncated" and not answer):
            self.close_connection = True
            self.wfile.write(f"HTTP/1.1 {status} ".encode())
            return
        self.answer(status, headers, bytes(answer), half=kind == "truncated")

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = do

    def passed_on(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        """Status, headers and body of the server's answer."""
        there = http.client.HTTPConnection(*self.server.there, timeout=60)
        try:
            there.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in ("expect", "connection"):
                    there.putheader(name, value)
            there.endheaders(body or None)
            found = there.getresponse()
            return found.status, [(k, v) for k, v in found.getheaders() if k.lower() not in HOP], found.read()
        finally:
            there.close()

    def answer(self, status: int, headers: list[tuple[str, str]], body: bytes, *, half: bool) -> None:
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() != "content-length" or self.command == "HEAD":
                self.send_header(name, value)
        if self.command != "HEAD":
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.close_connection |= half
        self.wfile.write(body[:len(body) // 2] if half else body)

    def refuse(self, status: int, code: str) -> None:
        self.answer(status, [("Content-Type", "application/xml")],
                    f"<Error><Code>{code}</Code><Message>injected</Message></Error>".encode(), half=False)

    def reset(self) -> None:
        """End the connection with RST, as a machine that died does."""
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()

    def handle(self) -> None:
        with suppress(OSError, ValueError):  # our own resets, and clients that went away
            super().handle()

    def finish(self) -> None:
        with suppress(OSError, ValueError):
            super().finish()

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: tests read `faults`."""


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, port: int, there: tuple[str, int], faults: Faults) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.there, self.faults = there, faults

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Nothing: what a broken connection does to the proxy is no finding."""


class Proxy:
    """A proxy before `endpoint`, at `url`; it may go and come back at the same port."""

    def __init__(self, endpoint: str, faults: Faults) -> None:
        parts = urlsplit(endpoint)
        self.there = (parts.hostname or "127.0.0.1", parts.port or 80)
        self.faults = faults
        self.port = 0
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        self.faults.down.clear()
        self._server = Server(self.port, self.there, self.faults)
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), name="fault-proxy", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Refuse new connections, and reset the open ones when they ask for something."""
        self.faults.down.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@contextmanager
def proxied(endpoint: str, faults: Faults) -> Iterator[Proxy]:
    """A running proxy before `endpoint`; stopped at the end."""
    proxy = Proxy(endpoint, faults)
    try:
        yield proxy
    finally:
        proxy.stop()
