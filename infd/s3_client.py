"""Addresses of objects, the store that the environment names, and clients of it.

Clients honour the AWS_* environment, AWS_ENDPOINT_URL (or AWS_ENDPOINT_URL_S3) above all. They are kept per process
(a client must not cross a fork) and shared by its threads. With an endpoint of one's own, buckets are addressed by
path.
"""

import os
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

from infd.errors import StorageError

SCHEME = "s3://"
ATTEMPTS = 6
"""Tries of every request, before it may be given up."""
CONNECT_TIMEOUT_S = 10
READ_TIMEOUT_S = 60


class Address(NamedTuple):
    """Bucket and key of an `s3://` address, taken literally: nothing in a key is an escape."""

    bucket: str
    key: str

    @property
    def uri(self) -> str:
        return f"{SCHEME}{self.bucket}/{self.key}"


def address(uri: str) -> Address:
    """Bucket and key of `s3://bucket/key`. Raises StorageError where there is no bucket."""
    bucket, _, key = uri.removeprefix(SCHEME).partition("/")
    if not bucket:
        raise StorageError(f"{uri}: no bucket in it; expected s3://bucket/key")
    return Address(bucket, key)


def endpoint() -> str:
    """The endpoint that the environment names, or ''."""
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""


def region() -> str:
    return os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"


def store() -> str:
    """The store that the environment names, in words."""
    return endpoint() or f"AWS, region {region()} (AWS_ENDPOINT_URL is not set)"


# ---------------------------------------------------------------- clients

_lock = threading.Lock()
_made: dict[tuple[str, ...], Any] = {}


def _forget_after_fork() -> None:
    global _lock
    _lock = threading.Lock()
    _made.clear()


os.register_at_fork(after_in_child=_forget_after_fork)


def _once(kind: str, make: Callable[[], Any]) -> Any:
    """`make()`, once for each environment of AWS_* in this process."""
    key = (kind, *(f"{name}={value}" for name, value in sorted(os.environ.items()) if name.startswith("AWS_")))
    with _lock:
        if key not in _made:
            _made[key] = make()
        return _made[key]


def client() -> Any:
    """The boto3 client of this process. It does not retry: `infd.s3.retrying` does, and knows what it repeats."""
    return _once("boto3", _make_client)


def _make_client() -> Any:
    from boto3.session import Session
    from botocore.config import Config

    config = Config(s3={"addressing_style": "path" if endpoint() else "auto"}, retries={"total_max_attempts": 1},
                    connect_timeout=CONNECT_TIMEOUT_S, read_timeout=READ_TIMEOUT_S, max_pool_connections=32)
    return Session().client("s3", endpoint_url=endpoint() or None, region_name=region(), config=config)


def filesystem() -> Any:
    """The pyarrow S3FileSystem of this process."""
    return _once("pyarrow", _make_filesystem)


def _make_filesystem() -> Any:
    from pyarrow import fs

    settings: dict[str, Any] = {"region": region(), "connect_timeout": CONNECT_TIMEOUT_S,
                                "request_timeout": READ_TIMEOUT_S,
                                "retry_strategy": fs.AwsStandardS3RetryStrategy(max_attempts=ATTEMPTS)}
    if endpoint():
        scheme, _, host = endpoint().rpartition("://")
        settings |= {"endpoint_override": host.rstrip("/"), "scheme": scheme or "https"}
    return fs.S3FileSystem(**settings)
