"""Storage: one law for folders and buckets; nobody sees half a file; of several writers one wins."""

import errno
import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infd import s3, s3_client, storage
from infd.errors import PreconditionFailed, StorageError

NAMES = ["plain", "with space", "per%20cent", "a+b", "ünï/日本", "q?x=1#f", "deep/er/still", "per%cent"]


@pytest.fixture(params=["folder", "file://", pytest.param("bucket", marks=pytest.mark.slow)])
def root(request, tmp_path) -> str:
    """An empty place of each kind."""
    if request.param == "bucket":
        return request.getfixturevalue("bucket")
    return f"{'file://' if request.param == 'file://' else ''}{tmp_path}/place"


# ---------------------------------------------------------------- laws of every place


def test_law_what_is_put_is_read(root, tmp_path):
    for number, name in enumerate(NAMES):
        uri = storage.join(root, name)
        data = bytes([number]) * (1000 * number)
        assert not storage.exists(uri)
        storage.put_atomic(uri, data)
        assert storage.exists(uri) and storage.read_bytes(uri) == data
        storage.get_file(uri, str(tmp_path / "copy"))
        assert (tmp_path / "copy").read_bytes() == data
        storage.put_atomic(uri, data + b"!")
        assert storage.read_with_etag(uri)[0] == data + b"!"
    assert {info.uri for info in storage.list_objects(root)} == {storage.join(root, name) for name in NAMES}


def test_law_listings_are_recursive_and_tell_versions(root):
    names = ["a-b", "a.b", "a/b", "a/c/d", "b", "c/1"]
    for name in reversed(names):
        storage.put_atomic(storage.join(root, name), name.encode())
    first = list(storage.list_objects(root))
    assert {info.uri.removeprefix(f"{root}/"): info.size for info in first} == {name: len(name) for name in names}
    assert {info.uri for info in storage.list_objects(storage.join(root, "a"))} == {
        storage.join(root, "a/b"), storage.join(root, "a/c/d")}
    assert list(storage.list_objects(storage.join(root, "nothing"))) == []
    storage.put_atomic(storage.join(root, "b"), b"changed")
    second = list(storage.list_objects(root))
    assert [a.uri for a, b in zip(first, second, strict=True) if a.etag != b.etag] == [storage.join(root, "b")]


def test_law_a_listed_version_is_read_or_refused(root):
    uri = storage.join(root, "x y")
    storage.put_atomic(uri, b"one")
    (info,) = storage.list_objects(root)
    assert storage.read_object(info) == b"one"
    storage.put_atomic(uri, b"three")
    with pytest.raises(PreconditionFailed, match="x y"):
        storage.read_object(info)
    storage.delete(uri)
    with pytest.raises(storage.Unreadable, match="x y"):
        storage.read_object(info)


def race(writers: int, write: Callable[[int], None]) -> list[int]:
    """Who won of `writers` threads that begin together."""
    barrier = threading.Barrier(writers)

    def one(number: int) -> bool:
        barrier.wait()
        try:
            write(number)
        except PreconditionFailed:
            return False
        return True

    with ThreadPoolExecutor(writers) as pool:
        return [number for number, won in enumerate(pool.map(one, range(writers))) if won]


def test_law_one_of_many_wins_an_empty_place(root):
    for turn in range(5):
        uri = storage.join(root, f"claim {turn}")
        winners = race(8, lambda number, uri=uri: storage.put_if_absent(uri, b"%d" % number))
        assert len(winners) == 1 and storage.read_bytes(uri) == b"%d" % winners[0]


def test_law_one_of_many_replaces_a_version(root):
    uri = storage.join(root, "latest")
    storage.replace_if_unchanged(uri, b"0", None)
    with pytest.raises(PreconditionFailed):
        storage.replace_if_unchanged(uri, b"x", None)
    for turn in range(5):
        etag = storage.read_with_etag(uri)[1]
        winners = race(8, lambda number, e=etag, t=turn: storage.replace_if_unchanged(uri, b"%d %d" % (t, number), e))
        assert len(winners) == 1 and storage.read_bytes(uri) == b"%d %d" % (turn, winners[0])


def test_law_replacing_what_is_gone_fails(root):
    uri = storage.join(root, "gone")
    storage.put_atomic(uri, b"x")
    etag = storage.read_with_etag(uri)[1]
    storage.delete(uri)
    with pytest.raises(StorageError, match="gone"):
        storage.replace_if_unchanged(uri, b"y", etag)
    assert not storage.exists(uri)


def test_law_large_files_go_up_whole(root, tmp_path, monkeypatch):
    monkeypatch.setattr(s3, "PART_BYTES", 5 << 20)
    data = os.urandom((11 << 20) + 17)
    (tmp_path / "big").write_bytes(data)
    storage.put_file(storage.join(root, "big"), str(tmp_path / "big"))
    assert storage.read_bytes(storage.join(root, "big")) == data
    storage.get_file(storage.join(root, "big"), str(tmp_path / "back"))
    assert (tmp_path / "back").read_bytes() == data


def test_law_deleting(root):
    for name in ("p/a", "p/b/c", "p q", "pq"):
        storage.put_atomic(storage.join(root, name), b"x")
    storage.delete(storage.join(root, "pq"))
    storage.delete(storage.join(root, "pq"))
    storage.delete_prefix(storage.join(root, "p"))
    assert [info.uri for info in storage.list_objects(root)] == [storage.join(root, "p q")]
    storage.delete_prefix(storage.join(root, "p"))


def test_law_the_arrow_filesystem_sees_the_same(root):
    uri = storage.join(root, "a b%20c/é+x")
    storage.put_atomic(uri, b"arrow")
    filesystem, path = storage.filesystem(uri)
    with filesystem.open_input_stream(path) as stream:
        assert stream.read() == b"arrow"


def test_error_what_is_missing_is_named(root, tmp_path):
    uri = storage.join(root, "no such")
    for read in (storage.read_bytes, storage.read_with_etag, lambda u: storage.get_file(u, str(tmp_path / "f"))):
        with pytest.raises(storage.Unreadable, match=f"{uri}: "):
            read(uri)
    assert not (tmp_path / "f").exists() and not [n for n in os.listdir(tmp_path) if n.endswith(storage.PARTIAL)]


# ---------------------------------------------------------------- addresses


@given(st.sampled_from(["s3://b", "s3://b/k", "file:///a", "/a", "a/b"]),
       st.text(st.characters(blacklist_characters="/", blacklist_categories=("Cs",)), min_size=1))
def test_law_parent_undoes_join(root_uri, name):
    assert storage.parent(storage.join(root_uri, name)) == root_uri


def test_law_addresses():
    assert storage.join("s3://b/x/", "/y/", "z") == "s3://b/x/y/z" and storage.join("/", "a") == "/a"
    assert storage.parent("s3://b") == "s3://b" and storage.parent("file:///a") == "file:///"
    assert storage.is_remote("s3://b/k") and not storage.is_remote("a/b") and not storage.is_remote("file:///a")
    assert s3_client.address("s3://b/a b/%20?x#y") == ("b", "a b/%20?x#y")
    assert storage.absolute("s3://b/x/") == "s3://b/x" and storage.absolute(".") == os.getcwd()
    for wrong, message in (("gs://b/k", "unknown scheme gs"), ("s3:///k", "no bucket in it")):
        with pytest.raises(StorageError, match=message):
            storage.exists(wrong)


# ---------------------------------------------------------------- folders


@given(st.sets(st.sampled_from(["a-b", "a.b", "a/b", "a/c/d", "a0", "b", "c/1", "c/ 1", "é/x", "a/c.d"]), min_size=1))
def test_law_folders_list_in_the_order_of_the_keys(tmp_path_factory, names):
    root = str(tmp_path_factory.mktemp("order"))
    for name in names:
        os.makedirs(os.path.dirname(f"{root}/{name}"), exist_ok=True)
        Path(f"{root}/{name}").touch()
    found = [info.uri.removeprefix(f"{root}/") for info in storage.list_objects(root)]
    assert found == sorted(names, key=str.encode)


@pytest.mark.parametrize("circle", ["root/a/up", "root/a/here", "elsewhere/deep/back"])
def test_law_links_are_followed_but_never_in_circles(tmp_path, circle):
    root, elsewhere = tmp_path / "root", tmp_path / "elsewhere"
    for path in (root / "a" / "1", root / "z", elsewhere / "2", elsewhere / "deep" / "3"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(path.name.encode())
    for link, target in (("b", elsewhere), ("a/file", elsewhere / "2"), ("a/nowhere", "gone"), ("a/itself", "itself")):
        (root / link).symlink_to(target)
    (tmp_path / circle).symlink_to("." if circle == "root/a/here" else "..")
    found = list(storage.list_objects(str(root)))
    assert [info.uri.removeprefix(f"{root}/") for info in found] == ["a/1", "a/file", "b/2", "b/deep/3", "z"]
    assert [storage.read_object(info) for info in found] == [b"1", b"2", b"2", b"3", b"z"]
    (tmp_path / "link").symlink_to(root)
    assert len(list(storage.list_objects(str(tmp_path / "link")))) == 5


def test_error_a_file_that_may_not_be_looked_at_is_no_missing_one(tmp_path, monkeypatch):
    class Entry:
        name, path = "1", str(tmp_path / "1")

        def stat(self) -> None:
            raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "scandir", lambda folder: [Entry()])
    with pytest.raises(StorageError, match=f"{tmp_path}: Permission denied"):
        list(storage.list_objects(str(tmp_path)))


def killed_within(path: str) -> Path:
    """What a process leaves that is killed while it writes `path`."""
    pid = os.fork()
    if pid == 0:
        with storage._whole_file(path) as file:
            file.write(b"half")
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    (left,) = (name for name in Path(path).parent.iterdir() if name.name.endswith(storage.PARTIAL))
    return left


def aged(path: str | Path) -> None:
    os.utime(path, (0, time.time() - 2 * storage.YOUNG_S))


def test_law_what_killed_writers_left_is_removed_and_no_more(tmp_path):
    storage.put_atomic(str(tmp_path / "a" / "whole"), b"whole")
    left = killed_within(str(tmp_path / "a" / "dead"))
    assert storage.remove_left(str(tmp_path)) == 0 and left.exists()  # it may be of a writer that has just begun
    aged(left)
    with storage._whole_file(str(tmp_path / "a" / "alive")) as file:
        file.write(b"all of it")
        aged(file.name)
        assert storage.remove_left(f"file://{tmp_path}") == 1 and not left.exists()
    assert sorted(os.listdir(tmp_path / "a")) == ["alive", "whole"]
    assert storage.read_bytes(str(tmp_path / "a" / "alive")) == b"all of it"
    assert storage.remove_left("s3://bucket/dataset") == 0


def test_law_a_write_that_fails_leaves_what_was_there(tmp_path):
    path = tmp_path / "f"
    path.write_bytes(b"old")
    with pytest.raises(RuntimeError), storage._whole_file(str(path)) as file:
        file.write(b"ne")
        raise RuntimeError
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["f"]


def test_law_readers_see_all_or_nothing(tmp_path):
    uri, stop, seen = str(tmp_path / "f"), threading.Event(), set()
    storage.put_atomic(uri, b"0" * 200_000)

    def watch() -> None:
        while not stop.is_set():
            data = storage.read_bytes(uri)
            seen.add((len(data), len(set(data))))

    thread = threading.Thread(target=watch)
    thread.start()
    for turn in range(50):
        storage.put_atomic(uri, bytes([turn]) * 200_000)
    stop.set()
    thread.join()
    assert seen == {(200_000, 1)}


def test_law_writes_under_way_and_locks_are_not_listed(tmp_path):
    storage.put_atomic(str(tmp_path / "a"), b"")
    Path(storage._partial(str(tmp_path / "b"))).write_bytes(b"half")
    storage.replace_if_unchanged(str(tmp_path / "a"), b"2", storage.read_with_etag(str(tmp_path / "a"))[1])
    assert len(os.listdir(tmp_path)) == 3
    assert [info.uri for info in storage.list_objects(str(tmp_path))] == [str(tmp_path / "a")]


def test_error_places_that_cannot_be(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="file: it is a file; expected a folder"):
        list(storage.list_objects(str(tmp_path / "file")))
    with pytest.raises(StorageError, match="check the"):
        storage.put_atomic(str(tmp_path / "file" / "below"), b"")
    with pytest.raises(StorageError, match="a whole bucket"):
        storage.delete_prefix("s3://bucket/")
    with pytest.raises(StorageError, match="the root folder"):
        storage.delete_prefix("/")


# ---------------------------------------------------------------- buckets


class FakeError(ConnectionError):
    """A connection that breaks."""


def test_law_transient_errors_are_tried_again(monkeypatch):
    monkeypatch.setattr(s3, "FIRST_WAIT_S", 0)
    monkeypatch.setattr(s3, "PATIENCE_S", 0)
    calls: list[int] = []

    def twice() -> str:
        calls.append(1)
        if len(calls) < 3:
            raise FakeError
        return "done"

    assert s3.retrying("s3://b/k", twice) == "done" and len(calls) == 3
    with pytest.raises(StorageError, match=r"s3://b/k: no sound answer from .*FakeError"):
        s3.retrying("s3://b/k", lambda: (_ for _ in ()).throw(FakeError()))


@pytest.mark.parametrize(("status", "code", "tries", "message"), [
    (503, "SlowDown", s3_client.ATTEMPTS, "answered 503 SlowDown"), (500, "InternalError", s3_client.ATTEMPTS, "answered 500"),
    (404, "NoSuchBucket", 1, "there is no bucket b"), (404, "NoSuchKey", 1, "no such object"),
    (403, "AccessDenied", 1, "refused access"), (403, "InvalidAccessKeyId", 1, "refused the credentials"),
    (412, "PreconditionFailed", 1, "someone else wrote it first")])
def test_error_what_the_store_says_is_told(monkeypatch, status, code, tries, message):
    from botocore.exceptions import ClientError

    monkeypatch.setattr(s3, "FIRST_WAIT_S", 0)
    monkeypatch.setattr(s3, "PATIENCE_S", 0)
    calls: list[int] = []

    def refuse() -> None:
        calls.append(1)
        raise ClientError({"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}, "GetObject")

    with pytest.raises(StorageError, match=message):
        s3.retrying("s3://b/k", refuse)
    assert len(calls) == tries


def test_law_a_lost_answer_of_our_own_write_is_no_defeat(monkeypatch):
    """The first try was stored but its answer got lost; the second meets it."""
    from botocore.exceptions import ClientError

    stored: dict[str, bytes] = {}

    class Client:
        def put_object(self, *, Body: bytes, **_: object) -> None:
            if "k" in stored:
                lost = {"Error": {"Code": "PreconditionFailed"}, "ResponseMetadata": {"HTTPStatusCode": 412}}
                raise ClientError(lost, "PutObject")  # type: ignore[arg-type]
            stored["k"] = theirs or Body
            raise FakeError

    monkeypatch.setattr(s3, "FIRST_WAIT_S", 0)
    monkeypatch.setattr(s3, "client", Client)
    monkeypatch.setattr(s3, "read", lambda uri: (stored["k"], "etag"))
    theirs = b""
    s3.put_if("s3://b/k", b"ours", IfNoneMatch="*")
    stored.clear()
    theirs = b"theirs"
    with pytest.raises(PreconditionFailed):
        s3.put_if("s3://b/k", b"ours", IfNoneMatch="*")


@pytest.mark.slow
def test_law_clients_are_per_process_and_environment(monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    first = s3_client.client()
    assert s3_client.client() is first
    assert first.meta.endpoint_url == "http://127.0.0.1:1" and first.meta.config.s3["addressing_style"] == "path"
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:2")
    assert s3_client.client().meta.endpoint_url == "http://127.0.0.1:2"
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(writing, b"1" if not s3_client._made else b"0")
        os._exit(0)
    os.waitpid(pid, 0)
    assert os.read(reading, 1) == b"1"


def test_error_no_store_at_the_endpoint(monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAKEY")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "SECRETSECRET")
    monkeypatch.setattr(s3, "FIRST_WAIT_S", 0)
    with pytest.raises(StorageError, match=r"s3://b/k: no sound answer from http://127.0.0.1:1") as caught:
        storage.read_bytes("s3://b/k")
    assert "SECRET" not in str(caught.value) and "AKIA" not in str(caught.value)


@pytest.mark.slow
def test_law_an_upload_in_parts_is_known_by_its_mark(bucket, tmp_path, monkeypatch):
    monkeypatch.setattr(s3, "PART_BYTES", 5 << 20)
    (tmp_path / "big").write_bytes(bytes(6 << 20))
    marks = set()
    for _ in range(2):
        storage.put_file(f"{bucket}/big", str(tmp_path / "big"))
        at = s3_client.address(f"{bucket}/big")
        marks.add(s3_client.client().head_object(Bucket=at.bucket, Key=at.key)["Metadata"][s3.MARK])
    assert len(marks) == 2


@pytest.mark.slow
def test_error_a_missing_bucket_is_named(bucket):
    for call in (storage.require_root, storage.read_bytes, lambda uri: list(storage.list_objects(uri))):
        with pytest.raises(StorageError, match="s3://no-such-bucket/k: there is no bucket no-such-bucket"):
            call("s3://no-such-bucket/k")
    storage.require_root(bucket)
