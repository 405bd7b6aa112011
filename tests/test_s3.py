"""The S3 half of storage without a store: how long it waits, what it repeats, what it believes."""

import hashlib
import io
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from infd import s3, s3_client
from infd.errors import StorageError
from infd.s3_errors import Unsound

LEAST, MOST = 0.5, 1.5


@pytest.fixture
def clock(monkeypatch) -> Iterator[SimpleNamespace]:
    """Time that passes by waiting alone; `chance` is what the jitter draws."""
    made = SimpleNamespace(now=0.0, chance=0.5)

    def sleep(wait_s: float) -> None:
        made.now += wait_s

    monkeypatch.setattr(s3, "time", SimpleNamespace(monotonic=lambda: made.now, sleep=sleep))
    monkeypatch.setattr(s3, "random", SimpleNamespace(random=lambda: made.chance))
    monkeypatch.setattr(s3, "_answered", {s3_client.endpoint()})
    yield made


@pytest.mark.parametrize("chance", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("gone_s", [1, 10, 30, 59])
def test_law_a_store_that_was_there_may_be_gone_for_its_patience(clock, chance, gone_s):
    """Whatever the jitter draws: 30 s are survived, and the answer is had at most one longest wait after its return."""
    clock.chance = chance

    def call() -> str:
        if clock.now < gone_s:
            raise ConnectionError
        return "here again"

    assert s3.retrying("s3://b/k", call) == "here again"
    assert gone_s <= clock.now <= gone_s + s3.MAX_WAIT_S * MOST


def test_law_patience_ends(clock):
    with pytest.raises(StorageError, match="no sound answer"):
        s3.retrying("s3://b/k", lambda: (_ for _ in ()).throw(ConnectionError()))
    assert s3.PATIENCE_S <= clock.now <= s3.PATIENCE_S + s3.MAX_WAIT_S * MOST


def test_law_a_store_that_never_answered_is_given_up_soon(clock, monkeypatch):
    monkeypatch.setattr(s3, "_answered", set())
    clock.chance = 1.0
    with pytest.raises(StorageError, match="no sound answer"):
        s3.retrying("s3://b/k", lambda: (_ for _ in ()).throw(ConnectionError()))
    assert clock.now < 10


def test_law_a_damaged_answer_is_no_outage(clock):
    calls: list[int] = []

    def damaged() -> None:
        calls.append(1)
        raise Unsound

    with pytest.raises(StorageError, match="no sound answer"):
        s3.retrying("s3://b/k", damaged)
    assert len(calls) == s3_client.ATTEMPTS and clock.now < 10


def test_law_waits_grow_to_a_bound_with_jitter(monkeypatch):
    monkeypatch.setattr(s3, "random", SimpleNamespace(random=lambda: 0.5))
    assert [s3.wait_after(n) for n in range(1, 8)] == [0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]
    assert s3.wait_after(10_000) == 5.0
    monkeypatch.undo()
    waits = [s3.wait_after(9) for _ in range(200)]
    assert LEAST * 5 <= min(waits) < 3.5 < 6.5 < max(waits) <= MOST * 5


def test_law_stopping_ends_the_wait_and_the_repeats():
    stop, errors = threading.Event(), []
    s3._answered.add(s3_client.endpoint())

    def ask() -> None:
        with s3.given_up_by(stop), pytest.raises(StorageError) as caught:
            s3.retrying("s3://b/k", lambda: (_ for _ in ()).throw(ConnectionError()))
        errors.append(caught.value)

    thread = threading.Thread(target=ask)
    thread.start()
    time.sleep(0.2)
    stop.set()
    thread.join(2)
    assert len(errors) == 1
    assert s3._thread.__dict__.get("stop") is None


def test_law_a_refused_connection_is_tried_again(monkeypatch):
    """What boto3 raises there is neither its HTTPClientError nor Python's ConnectionError."""
    monkeypatch.setattr(s3, "FIRST_WAIT_S", 0)
    for name, value in (("ENDPOINT_URL", "http://127.0.0.1:1"), ("ACCESS_KEY_ID", "k"), ("SECRET_ACCESS_KEY", "s")):
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3", raising=False)
    calls: list[int] = []

    def ask() -> None:
        calls.append(1)
        s3_client.client().head_object(Bucket="b", Key="k")

    with pytest.raises(StorageError, match="no sound answer"):
        s3.retrying("s3://b/k", ask)
    assert len(calls) == s3_client.ATTEMPTS


# ---------------------------------------------------------------- what is believed


class Store:
    """Answers get_object with `bodies` in turn, and with the headers `said`."""

    def __init__(self, etag: str, *bodies: bytes, **said: str) -> None:
        self.etag, self.bodies, self.said = etag, list(bodies), said

    def get_object(self, **_: object) -> dict:
        data = self.bodies.pop(0)
        return {"Body": io.BytesIO(data), "ContentLength": len(data), "ETag": f'"{self.etag}"', **self.said}


@pytest.fixture
def store(monkeypatch):
    def use(*args, **said) -> Store:
        made = Store(*args, **said)
        monkeypatch.setattr(s3, "client", lambda: made)
        monkeypatch.setattr(s3, "FIRST_WAIT_S", 0)
        return made

    return use


MD5 = hashlib.md5(b"bytes").hexdigest()


def test_law_bytes_that_do_not_fit_their_etag_are_read_again(store):
    made = store(MD5, b"bytEs", b"bytes")
    assert s3.read("s3://b/k") == (b"bytes", MD5) and not made.bodies


def test_law_an_etag_that_is_no_hash_of_the_bytes_is_found_out(store):
    made = store("0" * 32, b"bytes", b"bytes", b"never asked")
    assert s3.read("s3://b/k")[0] == b"bytes" and len(made.bodies) == 1
    made = store(f"{MD5}-2", b"parts", b"never asked")
    assert s3.read("s3://b/k")[0] == b"parts" and len(made.bodies) == 1


@pytest.mark.parametrize(("bucket", "said"), [
    ("b", {"ServerSideEncryption": "aws:kms"}), ("b", {"ServerSideEncryption": "aws:kms:dsse"}),
    ("b", {"SSECustomerAlgorithm": "AES256"}), ("b--use1-az4--x-s3", {})])
def test_law_where_etags_are_no_md5_nothing_is_read_twice(store, bucket, said):
    made = store("0" * 32, b"bytes", b"never asked", **said)
    assert s3.read(f"s3://{bucket}/k") == (b"bytes", "0" * 32) and len(made.bodies) == 1


def test_law_etags_of_stores_that_encrypt_by_themselves_are_still_looked_at(store):
    made = store(MD5, b"bytEs", b"bytes", ServerSideEncryption="AES256")
    assert s3.read("s3://b/k")[0] == b"bytes" and not made.bodies


def test_error_bytes_that_differ_each_time(store):
    store(MD5, *(bytes([n]) for n in range(s3_client.ATTEMPTS)))
    with pytest.raises(StorageError, match=r"s3://b/k: no sound answer .*Unsound"):
        s3.read("s3://b/k")


def test_law_a_listing_that_was_cut_short_is_asked_for_again(monkeypatch):
    """An answer cut within its headers has no body, which boto3 takes for a bucket without objects."""
    monkeypatch.setattr(s3, "FIRST_WAIT_S", 0)
    answers = [{}, {"IsTruncated": True}, {"IsTruncated": False, "Contents": [{"Key": "k", "ETag": "e", "Size": 1}]}]
    monkeypatch.setattr(s3, "client", lambda: SimpleNamespace(list_objects_v2=lambda **_: answers.pop(0)))
    assert list(s3.listing("s3://b")) == [("s3://b/k", "e", 1)]


# ---------------------------------------------------------------- parts


def refused(code: str, status: int):
    from botocore.exceptions import ClientError

    return ClientError({"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}, "X")  # type: ignore


class Uploads:
    """Completes an upload in parts; the answer to the first try is lost."""

    def __init__(self, metadata: dict[str, str]) -> None:
        self.tries, self.metadata = 0, metadata

    def complete_multipart_upload(self, **_: object) -> None:
        self.tries += 1
        raise ConnectionError if self.tries == 1 else refused("NoSuchUpload", 404)

    def head_object(self, **_: object) -> dict:
        return {"ContentLength": 70, "ETag": '"any-2"', "Metadata": self.metadata}


@pytest.mark.parametrize(("metadata", "won"), [({s3.MARK: "ours"}, True), ({s3.MARK: "another's"}, False), ({}, False)])
def test_law_a_lost_answer_to_the_end_of_an_upload_is_no_failure(monkeypatch, metadata, won):
    monkeypatch.setattr(s3, "FIRST_WAIT_S", 0)
    made = Uploads(metadata)
    monkeypatch.setattr(s3, "client", lambda: made)
    same = {"Bucket": "b", "Key": "k", "UploadId": "u"}
    if won:
        s3._complete("s3://b/k", same, [{}, {}], {s3.MARK: "ours"})
    else:
        with pytest.raises(StorageError, match="NoSuchUpload"):
            s3._complete("s3://b/k", same, [{}, {}], {s3.MARK: "ours"})


def test_law_objects_that_were_not_deleted_are_deleted_again(monkeypatch):
    monkeypatch.setattr(s3, "FIRST_WAIT_S", 0)
    answers = [{"Errors": [{"Key": "k", "Code": "SlowDown"}]}, {}]
    monkeypatch.setattr(s3, "client", lambda: SimpleNamespace(delete_objects=lambda **_: answers.pop(0)))
    s3.delete(["s3://b/k"])
    assert not answers
    answers.append({"Errors": [{"Key": "k", "Code": "AccessDenied"}]})
    with pytest.raises(StorageError, match="s3://b/k: not deleted"):
        s3.delete(["s3://b/k"])


def test_law_a_key_that_ends_with_a_slash_and_holds_bytes_is_listed(monkeypatch):
    items = [{"Key": key, "ETag": '"e"', "Size": size} for key, size in (("p/", 0), ("p/a/", 3), ("p/b", 0))]
    page = {"Contents": items, "IsTruncated": False}
    monkeypatch.setattr(s3, "client", lambda: SimpleNamespace(list_objects_v2=lambda **_: page))
    assert list(s3.listing("s3://b/p")) == [("s3://b/p/a/", "e", 3), ("s3://b/p/b", "e", 0)]


def test_law_damage_among_outages_is_counted_alone(clock):
    """Six failures of which five were damage, then outages for half a minute: still no reason to give up."""
    errors = [Unsound, ConnectionError, Unsound, Unsound, ConnectionError, Unsound, Unsound]

    def call() -> str:
        if errors:
            raise errors.pop(0)
        if clock.now < 30:
            raise ConnectionError
        return "here"

    assert s3.retrying("s3://b/k", call) == "here"
