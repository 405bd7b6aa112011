"""The S3 half of `infd.storage`: requests that are repeated where that may help, and the operations made of them.

Every request goes through `retrying`. A store that has answered this process before is waited for through outages of
PATIENCE_S; one that never answered (a wrong address, most often) is given up after ATTEMPTS, some six seconds.
"""

import contextlib
import hashlib
import logging
import os
import random
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import IO, Any, TypeVar

from infd.errors import PreconditionFailed, StorageError
from infd.s3_client import ATTEMPTS, SCHEME, Address, address, client, endpoint
from infd.s3_errors import (
    TRANSIENT_CODES,
    Unreadable,
    Unsound,
    code_of,
    is_missing,
    is_outage,
    is_transient,
    mended,
)

logger = logging.getLogger(__name__)
Result = TypeVar("Result")

FIRST_WAIT_S = 0.2
"""Before the second try; twice as long before each one after it, ± half of it by chance."""
MAX_WAIT_S = 5.0
PATIENCE_S = 60.0
"""A store that has answered before is asked again for at least this long, from the first failure of a request on."""
CHUNK_BYTES = 4 << 20
PART_BYTES = 32 << 20
MARK = "infd-upload"
"""Of an object that went up in parts: the metadata that tell by which upload."""
UNWRITABLE = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")
"""What a key may hold and XML may not, and so no request that names several keys."""
EXPRESS = "--x-s3"
"""Ending of the names of S3 Express buckets."""
EMPTY_ETAGS = frozenset({"d41d8cd98f00b204e9800998ecf8427e"})
"""The MD5 of nothing: some stores give it for what they have not hashed."""

# ---------------------------------------------------------------- retries

_answered: set[str] = set()  # endpoints that have given this process a sound answer
_thread = threading.local()


@contextlib.contextmanager
def given_up_by(stop: threading.Event) -> Iterator[None]:
    """In this thread and block, what fails is not tried again once `stop` is set: its error comes at once."""
    before = getattr(_thread, "stop", None)
    _thread.stop = stop
    try:
        yield
    finally:
        _thread.stop = before


def retrying(uri: str, call: Callable[[], Result], *, attempts: int | None = None) -> Result:
    """What `call` returns; repeated with backoff and jitter while its error is transient. Raises StorageError.

    `attempts` bounds the tries; without it there are ATTEMPTS, and more until PATIENCE_S have passed where a store
    that has answered before is gone. Law: such a store may be gone for PATIENCE_S, and no caller notices but by time.
    """
    from botocore.exceptions import BotoCoreError, ClientError
    from urllib3.exceptions import HTTPError

    stop: threading.Event | None = getattr(_thread, "stop", None)
    began_s, waited_s, attempt, damaged = time.monotonic(), 0.0, 0, 0
    while True:
        try:
            result = call()
            _answered.add(endpoint())
            return result
        except (BotoCoreError, ClientError, HTTPError, ConnectionError, Unsound) as error:
            attempt += 1
            if not is_transient(error):
                if isinstance(error, ClientError):
                    _answered.add(endpoint())
                raise mended(uri, error) from error
            spent_s = max(waited_s, time.monotonic() - began_s)
            damaged += not is_outage(error)
            patient = (attempts is None and endpoint() in _answered and damaged < ATTEMPTS
                       and (spent_s < PATIENCE_S or not is_outage(error)))
            if (attempt >= (attempts or ATTEMPTS) and not patient) or (stop is not None and stop.is_set()):
                raise mended(uri, error) from error
            if attempt == ATTEMPTS:
                logger.warning("%s: no sound answer for %.0f s (%s); trying for %.0f s", uri, spent_s,
                               code_of(error) or type(error).__name__, PATIENCE_S)
            wait_s = wait_after(attempt)
            waited_s += wait_s
            _sleep(wait_s, stop)


def wait_after(attempt: int) -> float:
    """Seconds between try number `attempt`, from 1 on, and the next one."""
    return min(MAX_WAIT_S, FIRST_WAIT_S * 2 ** min(attempt - 1, 30)) * (0.5 + random.random())


def _sleep(wait_s: float, stop: threading.Event | None) -> None:
    if stop is None:
        time.sleep(wait_s)
    else:
        stop.wait(wait_s)


# ---------------------------------------------------------------- operations


def said(response: Any, name: str) -> Any:
    """A field that every whole answer has. Raises Unsound where the answer was cut short before it."""
    if (value := response.get(name)) is None:
        raise Unsound(f"an answer without {name}")
    return value


def read(uri: str, *, if_etag: str | None = None) -> tuple[bytes, str]:
    """Bytes and etag; with `if_etag` only that version, else PreconditionFailed. Length and hash are checked."""
    at = address(uri)
    condition = {"IfMatch": f'"{if_etag}"'} if if_etag is not None else {}
    before: list[str] = []

    def once() -> tuple[bytes, str]:
        response = client().get_object(Bucket=at.bucket, Key=at.key, **condition)
        data, etag = response["Body"].read(), said(response, "ETag").strip('"')
        if len(data) != (size := said(response, "ContentLength")):
            raise Unsound(f"{len(data)} of {size} bytes")
        if _may_be_md5(at.bucket, response):
            _require_hash(data, etag, before)
        return data, etag

    return retrying(uri, once)


def _may_be_md5(bucket: str, response: Any) -> bool:
    """False where an etag of 32 digits is no MD5, by what the store says: keys of KMS or of the customer, S3 Express."""
    by_key = str(response.get("ServerSideEncryption")).startswith("aws:kms") or "SSECustomerAlgorithm" in response
    return not by_key and not bucket.endswith(EXPRESS)


def _require_hash(data: bytes, etag: str, before: list[str]) -> None:
    """Raise Unsound unless `etag` can be that of `data`; `before` holds what earlier tries of this read had.

    On most stores the etag of an object that went up whole is the MD5 of its bytes. That is a hint and no more: bytes
    that came twice are believed.
    """
    if len(etag) != 32 or etag in EMPTY_ETAGS:
        return
    found = hashlib.md5(data, usedforsecurity=False).hexdigest()
    if found != etag and found not in before:
        before.append(found)
        raise Unsound(f"MD5 {found}; the etag says {etag}")


def download(uri: str, file: IO[bytes]) -> None:
    """The object's bytes into `file`, from its start; begun again where the connection breaks. Who knows the file's
    hash checks it: shards are named by theirs."""
    at = address(uri)
    stop: threading.Event | None = getattr(_thread, "stop", None)

    def once() -> None:
        file.seek(0)
        file.truncate()
        response = client().get_object(Bucket=at.bucket, Key=at.key)
        with contextlib.closing(response["Body"]) as body:
            for chunk in body.iter_chunks(CHUNK_BYTES):
                file.write(chunk)
                if stop is not None and stop.is_set():
                    raise Unsound("given up")
        if file.tell() != (size := said(response, "ContentLength")):
            raise Unsound(f"{file.tell()} of {size} bytes")

    retrying(uri, once)


def exists(uri: str) -> bool:
    at = address(uri)
    try:
        retrying(uri, lambda: client().head_object(Bucket=at.bucket, Key=at.key))
    except Unreadable as error:
        if is_missing(error):
            return False
        raise
    return True


def require_bucket(uri: str) -> None:
    """Raise StorageError unless the bucket of `uri` is there."""
    bucket = address(uri).bucket
    try:
        retrying(uri, lambda: client().head_bucket(Bucket=bucket))
    except Unreadable as error:
        if is_missing(error):
            raise StorageError(f"{uri}: there is no bucket {bucket}; make it, or correct the address") from error
        raise


def listing(uri: str) -> Iterator[tuple[str, str, int]]:
    """(uri, etag, bytes) of every object under the prefix, in the store's order, page by page."""
    at = address(uri)
    prefix = at.key if not at.key or at.key.endswith("/") else f"{at.key}/"
    after: dict[str, str] = {}

    def once() -> Any:
        page = client().list_objects_v2(Bucket=at.bucket, Prefix=prefix, **after)
        if said(page, "IsTruncated"):  # without it an answer that was cut short is an empty listing
            said(page, "NextContinuationToken")
        return page

    while True:
        page = retrying(uri, once)
        for item in page.get("Contents", ()):
            if item["Size"] or not item["Key"].endswith("/"):  # a folder that some tool marked is no file
                yield f"{SCHEME}{at.bucket}/{item['Key']}", item["ETag"].strip('"'), item["Size"]
        if not page["IsTruncated"]:
            return
        after = {"ContinuationToken": page["NextContinuationToken"]}


def put(uri: str, data: bytes) -> None:
    at = address(uri)
    retrying(uri, lambda: client().put_object(Bucket=at.bucket, Key=at.key, Body=data))


def put_if(uri: str, data: bytes, **condition: str) -> None:
    """A conditional PUT (IfNoneMatch="*" or IfMatch=etag). Raises PreconditionFailed where the condition fails.

    A repeated request may meet its own first try, whose answer was lost: then what stands there is `data`, and we won.
    Two writers of equal bytes may so both win: where that matters, as for a lock, the bytes must tell them apart.
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
    at, mark = address(uri), {MARK: uuid.uuid4().hex}
    begun = retrying(uri, lambda: said(
        client().create_multipart_upload(Bucket=at.bucket, Key=at.key, Metadata=mark), "UploadId"))
    same = {"Bucket": at.bucket, "Key": at.key, "UploadId": begun}
    try:
        parts = [{"PartNumber": number, "ETag": _upload_part(uri, same, number, data)}
                 for number, data in enumerate(_parts(path), 1)]
        _complete(uri, same, parts, mark)
    except BaseException:
        with contextlib.suppress(StorageError):  # the first error is the one to tell; the store drops old uploads
            retrying(uri, lambda: client().abort_multipart_upload(**same), attempts=1)
        raise


def _complete(uri: str, same: dict[str, str], parts: list[dict[str, Any]], mark: dict[str, str]) -> None:
    """End an upload in parts. A repeated request finds no such upload where the answer to the first was lost: then the
    object stands there with this upload's mark."""
    tries = 0

    def once() -> None:
        nonlocal tries
        tries += 1
        client().complete_multipart_upload(**same, MultipartUpload={"Parts": parts})

    try:
        retrying(uri, once)
    except StorageError as error:
        if tries == 1 or not isinstance(error.__cause__, Exception) or code_of(error.__cause__) != "NoSuchUpload":
            raise
        found = retrying(uri, lambda: client().head_object(Bucket=same["Bucket"], Key=same["Key"]))
        if found.get("Metadata") != mark:
            raise


def _upload_part(uri: str, same: dict[str, str], number: int, data: bytes) -> str:
    return retrying(uri, lambda: said(client().upload_part(**same, PartNumber=number, Body=data), "ETag"))


def _parts(path: str) -> Iterator[bytes]:
    with open(path, "rb") as file:
        while data := file.read(PART_BYTES):
            yield data


def delete(uris: list[str]) -> None:
    """Delete objects of one bucket, a thousand a request; an object that is not there is no error."""
    for start in range(0, len(uris), 1000):
        some = [address(uri) for uri in uris[start:start + 1000]]
        retrying(uris[start], lambda: _delete(some))  # noqa: B023


def _delete(some: list[Address]) -> None:
    """One request; it may fail for some of the objects alone."""
    for at in some:
        if UNWRITABLE.search(at.key):
            client().delete_object(Bucket=at.bucket, Key=at.key)
    some = [at for at in some if not UNWRITABLE.search(at.key)]
    if not some:
        return
    what = {"Objects": [{"Key": at.key} for at in some], "Quiet": True}
    for error in client().delete_objects(Bucket=some[0].bucket, Delete=what).get("Errors", ()):
        if error["Code"] in TRANSIENT_CODES:
            raise Unsound(f"{error['Key']}: not deleted ({error['Code']})")
        raise StorageError(f"s3://{some[0].bucket}/{error['Key']}: not deleted ({error['Code']}); try again")
