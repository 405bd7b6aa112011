"""What the local stack keeps between commands: its folder, lock, record of processes, credentials; and the variables
that lead clients to it."""

import contextlib
import fcntl
import json
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from infd.errors import StackError
from infra.processes import Started
from infra.services import QUIET, RAY_SETTINGS, REGION, SERVICES, Layout, write_private

LOCK_LIMIT_S = 240.0
S3_VARIABLES = ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE",
                "AWS_DEFAULT_REGION", "AWS_REGION")
RAY_VARIABLES = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
NAMING = (*S3_VARIABLES, *RAY_VARIABLES, "MLFLOW_TRACKING_URI", "INFD_LOCAL")
"""Variables that lead clients to servers, and commands to a stack: a stack of its own is to be used without them."""


@dataclass(frozen=True, kw_only=True)
class State:
    """What one command leaves for the next: ports, processes, and the servers of others that ours were told of."""

    layout: Layout
    started: dict[str, Started]
    taken: dict[str, str]

    def save(self) -> None:
        write_private(self.layout.root / "state.json", json.dumps({
            "base": self.layout.base, "ray_temp": str(self.layout.ray_temp), "taken": self.taken,
            "started": {name: asdict(record) for name, record in self.started.items()}}, indent=1))

    @classmethod
    def load(cls, root: Path) -> "State | None":
        """None where no stack was ever started. Raises StackError on a file that is not of this form."""
        path = root / "state.json"
        if not path.exists():
            return None
        try:
            raw = json.loads(path.read_text())
            layout = Layout(root=root, base=raw["base"], ray_temp=Path(raw["ray_temp"]))
            return cls(layout=layout, taken=raw["taken"],
                       started={name: Started(**record) for name, record in raw["started"].items()})
        except (ValueError, KeyError, TypeError) as error:
            raise StackError(f"{path}: not a record of a stack ({error!r}); end its processes by hand, then "
                             "remove the file") from error


# ---------------------------------------------------------------- the environment


def environment(folder: Path, state: State | None) -> dict[str, str]:
    """Variables for clients of the stack: our own servers' where ours serve, else what the environment says."""
    layout = state.layout if state else None
    theirs = state.taken if state else named(None)
    env: dict[str, str] = {}
    if "s3" in theirs:
        env |= {name: os.environ[name] for name in S3_VARIABLES if name in os.environ}
    elif layout:
        keys = credentials(folder)
        env |= {"AWS_ENDPOINT_URL": layout.s3_url, "AWS_ACCESS_KEY_ID": keys["access_key"],
                "AWS_SECRET_ACCESS_KEY": keys["secret_key"], "AWS_DEFAULT_REGION": REGION}
    if "mlflow" in theirs:
        env |= {"MLFLOW_TRACKING_URI": os.environ["MLFLOW_TRACKING_URI"]}
    elif layout:
        env |= {"MLFLOW_TRACKING_URI": layout.mlflow_url}
    if "ray" in theirs:
        env |= {name: os.environ[name] for name in RAY_VARIABLES if name in os.environ}
    elif layout:
        env |= {"RAY_ADDRESS": layout.ray_gcs, "RAY_API_SERVER_ADDRESS": layout.ray_url, "RAY_AUTH_MODE": "token",
                "RAY_AUTH_TOKEN_PATH": str(layout.token_path), **RAY_SETTINGS}
    return env | (QUIET | no_proxy() if layout else {})


@contextlib.contextmanager
def environ(values: Mapping[str, str], *, without: Collection[str] = ()) -> Iterator[None]:
    """`os.environ` with `values` and without the names `without`; as before at the end."""
    saved = dict(os.environ)
    try:
        for name in without:
            os.environ.pop(name, None)
        os.environ.update(values)
        yield
    finally:
        os.environ.clear()
        os.environ.update(saved)


def named(layout: Layout | None) -> dict[str, str]:
    """Addresses that the environment names, by service; our own, which a user may have exported, do not count."""
    own = {layout.s3_url, layout.mlflow_url, layout.ray_url, layout.ray_gcs} if layout else set()
    found: dict[str, str] = {}
    for service in SERVICES:
        for name in service.taken_from:
            address = os.environ.get(name)
            if address and address not in own:
                found.setdefault(service.name, address)
    return found


def no_proxy() -> dict[str, str]:
    """NO_PROXY with loopback added; the small-letter form too where it is set, because some libraries read it first."""
    env = {}
    for name in ("NO_PROXY", *(["no_proxy"] if "no_proxy" in os.environ else [])):
        hosts = [host for host in os.environ.get(name, "").split(",") if host]
        env[name] = ",".join(dict.fromkeys([*hosts, "127.0.0.1", "localhost"]))
    return env


def credentials(folder: Path) -> dict[str, str]:
    """Keys of the S3 server, made once for a stack; Ray's token is made beside them."""
    path, token = folder / "credentials.json", folder / "ray_token"
    if not path.exists():
        write_private(path, json.dumps({"access_key": secrets.token_hex(10), "secret_key": secrets.token_hex(24)}))
    if not token.exists():
        write_private(token, secrets.token_hex(32))
    return json.loads(path.read_text())


# ---------------------------------------------------------------- folders and locks


def stack_root(root: str | Path | None = None) -> Path:
    """`root`, else INFD_LOCAL, else `.local` of the checkout (of the current folder where there is no checkout)."""
    checkout = Path(__file__).resolve().parents[1]
    default = (checkout if (checkout / "pyproject.toml").exists() else Path.cwd()) / ".local"
    return Path(root or os.environ.get("INFD_LOCAL") or default).absolute()


def short_temp() -> Path:
    """A new folder whose path leaves room for the names of Ray's sockets, about 80 of 103 bytes."""
    parent = tempfile.gettempdir()
    return Path(tempfile.mkdtemp(prefix="infd-", dir=parent if len(os.fsencode(parent)) <= 22 else "/tmp"))


def clear_ray_temp(layout: Layout) -> None:
    """Remove Ray's folder, once its logs (those of jobs too) are kept as `logs/ray-session`."""
    if not layout.ray_temp.name.startswith("infd-") or not layout.ray_temp.is_dir():
        return
    kept = layout.root / "logs" / "ray-session"
    for session in layout.ray_temp.glob("r/session_2*"):
        if (session / "logs").is_dir():
            shutil.rmtree(kept, ignore_errors=True)
            shutil.copytree(session / "logs", kept, ignore_dangling_symlinks=True, dirs_exist_ok=True)
    shutil.rmtree(layout.ray_temp)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other `up` and `down` of this folder out. Raises StackError after LOCK_LIMIT_S."""
    (folder / "logs").mkdir(exist_ok=True)
    (folder / ".gitignore").write_text("*\n")
    with open(folder / "lock", "a+") as file:
        end = time.monotonic() + LOCK_LIMIT_S
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > end:
                    raise StackError(f"{folder / 'lock'}: another up or down has held it for {LOCK_LIMIT_S:.0f} s; "
                                     "wait for it, or end it") from error
                time.sleep(0.1)
        yield
