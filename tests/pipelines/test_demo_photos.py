"""Demo photographs: the Debian reader on packages made here, hashes, going on after an interruption, and the real set."""

import hashlib
import io
import logging
import shutil
import tarfile
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from infd.downloads import write_whole
from infd.errors import StorageError
from pipelines import debian, demo_photos
from pipelines.demo_photos import PhotoFile


def make_deb(contents: dict[str, bytes], compression: str = "xz") -> bytes:
    """A .deb with these files, a folder and a link besides."""
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w" if compression == "zst" else f"w:{compression}") as box:  # type: ignore
        folder = tarfile.TarInfo("./usr/")
        folder.type = tarfile.DIRTYPE
        box.addfile(folder)
        for name, data in contents.items():
            entry = tarfile.TarInfo(f"./{name}")
            entry.size = len(data)
            box.addfile(entry, io.BytesIO(data))
        link = tarfile.TarInfo("./usr/link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        box.addfile(link)
    data = plain.getvalue()
    if compression == "zst":
        data = pa.compress(data, codec="zstd", asbytes=True)
    members = {"debian-binary": b"2.0\n", "control.tar.xz": b"odd", f"data.tar.{compression}": data}
    return b"!<arch>\n" + b"".join(
        f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(body):<10}".encode() + b"`\n" + body + b"\n" * (len(body) % 2)
        for name, body in members.items())


def read_deb(path: Path) -> dict[str, bytes]:
    return {name: file.read() for name, file in debian.files(path)}


def photo(folder: Path, name: str, data: bytes) -> PhotoFile:
    return PhotoFile(path=folder / "toy" / name, sha256=hashlib.sha256(data).hexdigest(), license="CC0-1.0",
                     author="nobody", package="toy", file=f"usr/share/{name}")


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """A set of twelve photos in one package; returns (folder, contents by file name, list of downloads made)."""
    contents = {f"photo{i:02}.jpg": bytes([i]) * (100 + i) for i in range(12)}
    folder, made = tmp_path / "photos", []

    def download(package: str, scratch: Path) -> Path:
        made.append(package)
        path = scratch / f"{package}_1_all.deb"
        path.write_bytes(make_deb({f"usr/share/{name}": data for name, data in contents.items()}))
        return path

    expected = [photo(folder, name, data) for name, data in contents.items()]
    monkeypatch.setattr(debian, "download", download)
    monkeypatch.setattr(demo_photos, "listed", lambda photo_set, at: expected if photo_set == "demo" else [])
    return folder, contents, made


@pytest.mark.parametrize("compression", ["xz", "gz", "bz2", "zst"])
def test_law_files_of_a_deb_are_those_that_went_in(tmp_path, compression):
    contents = {"usr/share/a.jpg": b"first" * 50_000, "usr/share/b c.png": b"", "etc/d": b"x"}
    path = tmp_path / "toy.deb"
    path.write_bytes(make_deb(contents, compression))
    assert read_deb(path) == contents


WHOLE = make_deb({"usr/share/a.jpg": bytes(range(256)) * 20, "usr/share/b.jpg": b"second"})


@given(st.integers(0, len(WHOLE) - 3))  # the last bytes are padding
def test_error_a_cut_deb_is_refused(tmp_path_factory, length):
    path = tmp_path_factory.mktemp("deb") / "toy.deb"
    path.write_bytes(WHOLE[:length])
    with pytest.raises(StorageError, match="is no whole Debian package"):
        read_deb(path)


def test_law_fetch_gives_the_photos_in_order_and_leaves_no_scratch(toy):
    folder, contents, made = toy
    photos = demo_photos.fetch("demo", into=folder)
    assert [one.path.name for one in photos] == list(contents)
    assert all(one.path.read_bytes() == contents[one.path.name] for one in photos)
    assert [path.name for path in folder.iterdir()] == ["toy"]
    assert made == ["toy"]


def test_law_what_is_there_is_not_fetched_again(toy):
    folder, _, made = toy
    demo_photos.fetch("demo", into=folder)
    again = demo_photos.fetch("demo", into=folder)
    assert made == ["toy"] and len(again) == 12


def test_law_an_interrupted_fetch_goes_on(toy, monkeypatch):
    folder, contents, made = toy
    written: list[Path] = []

    def write_four(path: Path, data: bytes) -> None:
        if len(written) == 4:
            raise KeyboardInterrupt
        write_whole(path, data)
        written.append(path)

    monkeypatch.setattr(demo_photos, "write_whole", write_four)
    with pytest.raises(KeyboardInterrupt):
        demo_photos.fetch("demo", into=folder)
    kept = {path: path.stat().st_mtime_ns for path in written}
    monkeypatch.setattr(demo_photos, "write_whole", write_whole)
    photos = demo_photos.fetch("demo", into=folder)
    assert [one.path.read_bytes() for one in photos] == list(contents.values())
    assert {path: path.stat().st_mtime_ns for path in written} == kept


def test_law_a_damaged_photo_is_replaced(toy):
    folder, contents, _ = toy
    path = demo_photos.fetch("demo", into=folder)[3].path
    path.write_bytes(b"damage")
    demo_photos.fetch("demo", into=folder)
    assert path.read_bytes() == contents[path.name]


def test_law_a_photo_with_another_hash_is_left_out_with_a_warning(toy, caplog):
    folder, contents, _ = toy
    contents["photo05.jpg"] = b"another picture"
    del contents["photo07.jpg"]
    with caplog.at_level(logging.WARNING):
        photos = demo_photos.fetch("demo", into=folder)
    assert {one.path.name for one in photos} == set(contents) - {"photo05.jpg"}
    assert "photo05.jpg has sha256" in caplog.text and "has no file usr/share/photo07.jpg" in caplog.text
    assert not (folder / "toy" / "photo05.jpg").exists()


def test_law_without_apt_the_set_of_the_python_package_is_taken(tmp_path, monkeypatch, caplog):
    interiors = [photo(tmp_path, f"room{i}.jpg", bytes([i])) for i in range(12)]
    for i, one in enumerate(interiors):
        write_whole(one.path, bytes([i]))
    real = demo_photos.listed
    monkeypatch.setattr(demo_photos, "listed", lambda photo_set, at: interiors if photo_set == "interiors"
                        else real(photo_set, at))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert demo_photos.fetch("demo", into=tmp_path) == interiors
    assert "this machine has no apt-get" in caplog.text


def test_error_no_photos_at_all(toy, monkeypatch):
    folder, contents, _ = toy
    contents.clear()
    with pytest.raises(StorageError, match=r"0 could be had; expected 10 at least; .*IMAGES=folder"):
        demo_photos.fetch("demo", into=folder)


@pytest.mark.parametrize(("photo_set", "count"), [("demo", 29), ("interiors", 37)])
def test_manifest_names_licence_author_and_hash_of_each_photo(tmp_path, photo_set, count):
    photos = demo_photos.listed(photo_set, tmp_path)
    assert len(photos) == len({one.path for one in photos}) == count
    for one in photos:
        assert one.license and one.author and len(bytes.fromhex(one.sha256)) == 32
        assert one.path.parent == tmp_path / one.package


@pytest.mark.slow
def test_real_photos_open_at_the_listed_hashes():
    photo_set = "demo" if shutil.which("apt-get") else "interiors"
    photos = demo_photos.fetch(photo_set)
    assert len(photos) >= demo_photos.FEWEST
    for one in photos[:3]:
        with Image.open(one.path) as image:
            image.load()
            assert min(image.size) >= 256
