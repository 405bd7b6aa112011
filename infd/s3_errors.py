"""What the errors of boto3 mean: which to try again, whose fault they are, and what to tell a user.

Messages never hold credentials.
"""

from typing import Any

from infd.errors import PreconditionFailed, StorageError
from infd.s3_client import address, store

TRANSIENT_CODES = frozenset({"SlowDown", "InternalError", "RequestTimeout", "ServiceUnavailable", "Throttling",
                             "ThrottlingException", "RequestTimeTooSkewed", "ConditionalRequestConflict"})
GONE_CODES = TRANSIENT_CODES - {"RequestTimeTooSkewed", "ConditionalRequestConflict"}
LOST_CODES = frozenset({"PreconditionFailed", "412"})
MISSING_CODES = frozenset({"NoSuchKey", "404", "NotFound"})


class Unreadable(StorageError):
    """This one object cannot be read (it is gone, or the store refuses it) although the store answers."""


class Unsound(Exception):
    """An answer that is not what it should be: a body cut short or damaged, a part of the work left undone."""


def code_of(error: Exception) -> str:
    """The store's word for what went wrong; empty where it said none."""
    return str(_response(error).get("Error", {}).get("Code", ""))


def status_of(error: Exception) -> int:
    """HTTP status; 0 where there was no answer."""
    return int(_response(error).get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _response(error: Exception) -> dict[str, Any]:
    return getattr(error, "response", None) or {}


def is_missing(error: StorageError) -> bool:
    """True where the store said that there is no such thing, not that we may not see it."""
    return isinstance(error.__cause__, Exception) and status_of(error.__cause__) == 404


def is_transient(error: Exception) -> bool:
    """True where the same request may succeed next time."""
    from botocore import exceptions, parsers

    broken = (exceptions.IncompleteReadError, exceptions.ResponseStreamingError, exceptions.FlexibleChecksumError,
              parsers.ResponseParserError, Unsound)
    return isinstance(error, broken) or code_of(error) in TRANSIENT_CODES or is_outage(error)


def is_outage(error: Exception) -> bool:
    """True where it is the store that fails, not this one request: no connection, or it says so itself."""
    from botocore import exceptions
    from urllib3.exceptions import HTTPError

    unreached = (exceptions.HTTPClientError, exceptions.ConnectionError, HTTPError, ConnectionError)
    return isinstance(error, unreached) or status_of(error) >= 500 or code_of(error) in GONE_CODES


def mended(uri: str, error: Exception) -> StorageError:
    """Our error for one of boto3's: what the store said, and what to do."""
    from botocore import exceptions

    code, status = code_of(error), status_of(error)
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
    return StorageError(f"{uri}: no sound answer from {store()} ({type(error).__name__}); check that it runs and is "
                        "reachable, then try again")
