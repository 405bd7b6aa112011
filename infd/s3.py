"""The S3 half of `infd.storage`: one place that builds clients, one place that turns their errors into ours.

Clients honour the AWS_* environment, AWS_ENDPOINT_URL (or AWS_ENDPOINT_URL_S3) above all. They are kept per process
(a client must not cross a fork) and shared by its threads. With an endpoint of one's own, buckets are addressed by
path. Messages never hold credentials.
"""

import contextlib
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from typing import IO, Any, NamedTuple, TypeVar

from infd.errors import PreconditionFailed, StorageError

Result = TypeVar("Result")

SCHEME = "s3://"
ATTEMPTS = 6
FIRST_WAIT_S = 0.2
CHUNK_BYTES = 4 << 20
PART_BYTES = 32 << 20
CONNECT_TIMEOUT_S = 10
READ_TIMEOUT_S = 60
TRANSIENT_CODES = frozenset({"SlowDown", "InternalError", "RequestTimeout", "ServiceUnavailable", "Throttling",
                             "ThrottlingException", "RequestTimeTooSkewed", "ConditionalRequestConflict"})
LOST_CODES = frozenset({"PreconditionFailed", "412"})
MISSING_CODES = frozenset({"NoSuchKey", "404", "NotFound"})


class Unreadable(StorageError):
    """This one object cannot be read (it is gone, or the store refuses it) although the store answers."""


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
    """The boto3 client of this process. It does not retry: `retrying` does, and knows what it repeats."""
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


# ---------------------------------------------------------------- errors and retries


def _code(error: Exception) -> str:
    response = getattr(error, "response", None) or {}
    return str(response.get("Error", {}).get("Code", ""))


def _status(error: Exception) -> int:
    response = getattr(error, "response", None) or {}
    return int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _missing(error: StorageError) -> bool:
    """True where the store said that there is no such thing, not that we may not see it."""
    return isinstance(error.__cause__, Exception) and _status(error.__cause__) == 404


def _transient(error: Exception) -> bool:
    from botocore import exceptions
    from urllib3.exceptions import HTTPError

    broken = (exceptions.HTTPClientError, exceptions.IncompleteReadError, exceptions.ResponseStreamingError,
              HTTPError, ConnectionError, ShortBody)
    return isinstance(error, broken) or _code(error) in TRANSIENT_CODES or _status(error) >= 500


class ShortBody(Exception):
    """A body with fewer bytes than its header said."""


def mended(uri: str, error: Exception) -> StorageError:
    """Our error for one of boto3's: what the store said, and what to do. Never holds a credential."""
    from botocore import exceptions

    code, status = _code(error), _status(error)
    if code == "NoSuchBucket":
        return StorageError(f"{uri}: there is no bucket {address(uri).bucket}; make it, or correct the address")
    if code in LOST_CODES:
        return PreconditionFailed(f"{uri}: someone else wrote it first; read it again and decide anew")
    if code in MISSING_CODES:
        return Unreadable(f"{uri}: there is no such object; check the address")
    if isinstance(error, exceptions.NoCredentialsError | exceptions.PartialCredentialsError):
        return StorageError(f"{uri}: no credentials found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
    if code in ("InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken"):
        return StorageError(f"{uri}: the store refused the credentials ({code}); check AWS_ACCESS_KEY_ID")
    if status == 403:
        return Unreadable(f"{uri}: the store refused access ({code or 403}); check the permissions of this key")
    if code or status:
        return StorageError(f"{uri}: the store answered {status} {code}; expected success; check the store's log")
    where = endpoint() or f"AWS, region {region()} (AWS_ENDPOINT_URL is not set)"
    return StorageError(f"{uri}: no sound answer from {where} ({type(error).__name__}); check that it runs and is "
                        "reachable, then try again")


def retrying(uri: str, call: Callable[[], Result], *, attempts: int = ATTEMPTS) -> Result:
    """What `call` returns; repeated with backoff and jitter while its error is transient. Raises StorageError."""
    from botocore.exceptions import BotoCoreError, ClientError
    from urllib3.exceptions import HTTPError

    for attempt in range(attempts):
        try:
            return call()
        except (BotoCoreError, ClientError, HTTPError, ConnectionError, ShortBody) as error:
            if attempt == attempts - 1 or not _transient(error):
                raise mended(uri, error) from error
            time.sleep(FIRST_WAIT_S * 2**attempt * (0.5 + random.random()))
    raise AssertionError("attempts is at least 1")


# ---------------------------------------------------------------- operations


def read(uri: str, *, if_etag: str | None = None) -> tuple[bytes, str]:
    """Bytes and etag; with `if_etag` only that version, else PreconditionFailed."""
    at = address(uri)
    condition = {"IfMatch": f'"{if_etag}"'} if if_etag is not None else {}

    def once() -> tuple[bytes, str]:
        response = client().get_object(Bucket=at.bucket, Key=at.key, **condition)
        data = response["Body"].read()
        if len(data) != response["ContentLength"]:
            raise ShortBody(uri)
        return data, response["ETag"].strip('"')

    return retrying(uri, once)


def download(uri: str, file: IO[bytes]) -> None:
    """The object's bytes into `file`, from its start; begun again where the connection breaks."""
    at = address(uri)

    def once() -> None:
        file.seek(0)
        file.truncate()
        response = client().get_object(Bucket=at.bucket, Key=at.key)
        for chunk in response["Body"].iter_chunks(CHUNK_BYTES):
            file.write(chunk)
        if file.tell() != response["ContentLength"]:
            raise ShortBody(uri)

    retrying(uri, once)


def exists(uri: str) -> bool:
    at = address(uri)
    try:
        retrying(uri, lambda: client().head_object(Bucket=at.bucket, Key=at.key))
    except Unreadable as error:
        if _missing(error):
            return False
        raise
    return True


def require_bucket(uri: str) -> None:
    """Raise StorageError unless the bucket of `uri` is there."""
    bucket = address(uri).bucket
    try:
        retrying(uri, lambda: client().head_bucket(Bucket=bucket))
    except Unreadable as error:
        if _missing(error):
            raise StorageError(f"{uri}: there is no bucket {bucket}; make it, or correct the address") from error
        raise


def listing(uri: str) -> Iterator[tuple[str, str, int]]:
    """(uri, etag, bytes) of every object under the prefix, in the store's order, page by page."""
    at = address(uri)
    prefix = at.key if not at.key or at.key.endswith("/") else f"{at.key}/"
    after: dict[str, str] = {}
    while True:
        page = retrying(uri, lambda: client().list_objects_v2(Bucket=at.bucket, Prefix=prefix, **after))  # noqa: B023
        for item in page.get("Contents", ()):
            if not item["Key"].endswith("/"):
                yield f"{SCHEME}{at.bucket}/{item['Key']}", item["ETag"].strip('"'), item["Size"]
        if not page.get("IsTruncated"):
            return
        after = {"ContinuationToken": page["NextContinuationToken"]}


def put(uri: str, data: bytes) -> None:
    at = address(uri)
    retrying(uri, lambda: client().put_object(Bucket=at.bucket, Key=at.key, Body=data))


def put_if(uri: str, data: bytes, **condition: str) -> None:
    """A conditional PUT (IfNoneMatch="*" or IfMatch=etag). Raises PreconditionFailed where the condition fails.

    A repeated request may meet its own first try, whose answer was lost: then what stands there is `data`, and we won.
    """
    at = address(uri)
    tries = 0

    def once() -> None:
        nonlocal tries
        tries += 1
        client().put_object(Bucket=at.bucket, Key=at.key, Body=data, **condition)

    try:
        retrying(uri, once)
    except PreconditionFailed:
        if tries == 1 or read(uri)[0] != data:
            raise


def upload(uri: str, path: str) -> None:
    """A local file as an object, in parts where it is large: visible only when whole."""
    if os.path.getsize(path) <= PART_BYTES:
        with open(path, "rb") as file:
            return put(uri, file.read())
    at = address(uri)
    begun = retrying(uri, lambda: client().create_multipart_upload(Bucket=at.bucket, Key=at.key))["UploadId"]
    same = {"Bucket": at.bucket, "Key": at.key, "UploadId": begun}
    try:
        parts = [{"PartNumber": number, "ETag": _upload_part(uri, same, number, data)}
                 for number, data in enumerate(_parts(path), 1)]
        retrying(uri, lambda: client().complete_multipart_upload(**same, MultipartUpload={"Parts": parts}))
    except BaseException:
        with contextlib.suppress(StorageError):  # the first error is the one to tell; the store drops old uploads
            retrying(uri, lambda: client().abort_multipart_upload(**same), attempts=1)
        raise


def _upload_part(uri: str, same: dict[str, str], number: int, data: bytes) -> str:
    return retrying(uri, lambda: client().upload_part(**same, PartNumber=number, Body=data))["ETag"]


def _parts(path: str) -> Iterator[bytes]:
    with open(path, "rb") as file:
        while data := file.read(PART_BYTES):
            yield data


def delete(uris: list[str]) -> None:
    """Delete objects of one bucket, a thousand a request; an object that is not there is no error."""
    for start in range(0, len(uris), 1000):
        some = [address(uri) for uri in uris[start:start + 1000]]
        what = {"Objects": [{"Key": at.key} for at in some], "Quiet": True}
        answer = retrying(uris[start], lambda: client().delete_objects(Bucket=some[0].bucket, Delete=what))  # noqa: B023
        for error in answer.get("Errors", ()):
            raise StorageError(f"s3://{some[0].bucket}/{error['Key']}: not deleted ({error['Code']}); try again")
