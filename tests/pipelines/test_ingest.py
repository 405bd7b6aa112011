"""Ingest: each unit alone, all of it through Ray, again with news, and killed in the middle."""

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from crashes import finished_within
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from pictures import encoded, picture
from PIL import Image
from stores import one_etag_for_all

from infd import config_form, lease, storage
from infd.config import IngestConfig
from infd.data import photo, snapshot
from infd.data.photo import REASONS
from infd.errors import ConfigError, DatasetError, InfdError, PhotoError, StorageError
from infd.storage import ObjectInfo
from jobs import ingest as ingest_job
from pipelines import cluster, ingest_plan, ingest_report
from pipelines.ingest import Ingested, ingest, photo_rows, read_source, run_unit, task_of

CONFIG = IngestConfig(codec="png", tile_px=128, min_side_px=64, shard_bytes=200_000)
ROOT = Path(__file__).resolve().parents[2]


def put_photos(folder: Path, seeds: range, side: int = 150) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for seed in seeds:
        (folder / f"p {seed:02d}%é.png").write_bytes(encoded(picture(side + 7 * seed, side, seed)))


@pytest.fixture
def photos(tmp_path) -> Path:
    """Ten photos, and four files that are none: too small, cut short, text, and a copy of the first."""
    folder = tmp_path / "photos"
    put_photos(folder, range(10))
    (folder / "small.png").write_bytes(encoded(picture(63, 100)))
    (folder / "cut.jpg").write_bytes(encoded(picture(300, 200), "JPEG")[:4000])
    (folder / "notes.txt").write_bytes(b"not a photo")
    (folder / "z copy.png").write_bytes((folder / "p 00%é.png").read_bytes())
    return folder


@pytest.fixture(scope="module")
def ray_here(stack) -> Iterator[None]:
    """One connection to the stack's cluster for all tests of this file; the killed job has a cluster of its own."""
    with cluster.connect():
        yield


@pytest.fixture
def here(monkeypatch) -> None:
    """Units run in this process, one after the other: all of ingest but Ray."""
    def run(plan: ingest_plan.Plan, tasks: list[dict]) -> None:
        for task in tasks:
            run_unit(task, run_uri=plan.uri(), dataset=plan.dataset, config=config_form.flat(plan.config), group=plan.group)

    monkeypatch.setattr("pipelines.ingest.run_on_ray", run)


def tree(dataset: str | Path) -> dict[str, bytes]:
    """Every file of a dataset that must be equal in equal ingests."""
    return {str(path.relative_to(dataset)): path.read_bytes() for path in sorted(Path(dataset).rglob("*"))
            if path.is_file() and path.name != "finished.json"}


def uris(made: Ingested) -> list[str]:
    dataset = snapshot.open_dataset(made.snapshot_uri)
    return [Path(dataset[row]["uri"]).name for row in range(len(dataset))]


# ---------------------------------------------------------------- a unit


@pytest.mark.slow
def test_law_a_unit_writes_the_same_bytes_twice(photos, tmp_path):
    files = list(storage.list_objects(str(photos)))
    for place in ("a", "b"):
        for _ in range(2):
            made = run_unit(task_of(3, files), run_uri=f"{tmp_path}/{place}/runs/x", dataset=f"{tmp_path}/{place}",
                            config=config_form.flat(CONFIG), group="lr")
    assert made["unit"] == 3 and made["files"] == 14 and made["rejected"] == 3
    assert tree(tmp_path / "a") == tree(tmp_path / "b")
    entries = ingest_plan.read_rows(f"{tmp_path}/a/runs/x/done/00000003.parquet")
    assert len(entries) > 1 and sum(entry["rows"] for entry in entries) == 11
    assert {group for entry in entries for group in entry["groups"]} == {"lr"}


def test_law_what_is_no_photo_is_a_reject_with_a_known_reason(photos):
    rejects: list = []
    rows = list(photo_rows(list(storage.list_objects(str(photos))), rejects, CONFIG, ""))
    assert len(rows) == 11
    found = {Path(row["uri"]).name: (row["reason"], row["detail"]) for row in rejects}
    assert found == {"small.png": ("too_small", "63x100, short side below 64"), "notes.txt": ("unsupported", ""),
                     "cut.jpg": ("truncated", "JPEG pixels")}
    assert all(row["reason"] in REASONS for row in rejects)


def test_law_files_that_changed_or_vanished_are_rejects(tmp_path):
    put_photos(tmp_path / "p", range(3))
    files = list(storage.list_objects(str(tmp_path / "p")))
    Path(files[0].uri).write_bytes(b"another")
    Path(files[1].uri).unlink()
    rejects: list = []
    (row,) = photo_rows(files, rejects, CONFIG, "")
    assert row["uri"] == files[2].uri and [r["reason"] for r in rejects] == ["changed", "unreadable"]


def test_law_a_photo_that_memory_cannot_hold_is_a_reject_and_the_next_ingest_tries_it_again(tmp_path, monkeypatch):
    put_photos(tmp_path / "p", range(3))
    files = list(storage.list_objects(str(tmp_path / "p")))
    large = Path(files[1].uri).read_bytes()
    decode = photo.decode

    def decode_or_not(data: bytes, **limits: int) -> Image.Image:
        if data == large:
            raise MemoryError
        return decode(data, **limits)

    monkeypatch.setattr(photo, "decode", decode_or_not)
    rejects: list = []
    rows = list(photo_rows(files, rejects, CONFIG, ""))
    assert [row["uri"] for row in rows] == [files[0].uri, files[2].uri]
    assert [(r["uri"], r["reason"], r["detail"]) for r in rejects] == [(files[1].uri, "unreadable", "not enough memory")]
    assert rejects[0]["reason"] in ingest_plan.PASSING


def test_law_large_files_are_not_even_read():
    with pytest.raises(InfdError, match="too_many_bytes: 2001 bytes, more than 2000"):
        read_source(ObjectInfo("/no/such/file", "", 2001), IngestConfig(max_bytes=2000))


# ---------------------------------------------------------------- the plan


@given(st.lists(st.integers(0, 500), min_size=1, max_size=300), st.integers(1, 40), st.integers(100, 3000))
def test_law_units_cover_all_files_in_order_within_bounds(sizes, photos, limit):
    files = [ObjectInfo(str(i), "", size) for i, size in enumerate(sizes)]
    config = IngestConfig(unit_photos=photos, unit_bytes=limit)
    units = ingest_plan.cut(files, config)
    assert [info for unit in units for info in unit] == files
    assert all(len(unit) <= photos and (len(unit) == 1 or sum(i.size for i in unit) <= limit) for unit in units)
    assert all(units)


def test_law_a_run_is_named_by_what_it_reads(photos, tmp_path):
    def name(**other: object) -> str:
        return ingest_plan.make_plan(str(photos), str(tmp_path / "ds"), **({"config": CONFIG, "group": ""} | other)).run

    first = name()
    assert name() == first
    assert len({first, name(group="hr"), name(config=IngestConfig(codec="png"))}) == 3
    os.utime(photos / "notes.txt", ns=(1, 1))
    assert name() != first


# ---------------------------------------------------------------- all but Ray


@pytest.mark.slow
def test_law_ingest_again_takes_what_is_new(here, photos, tmp_path):
    dataset = str(tmp_path / "ds")
    first = ingest(str(photos), dataset, config=CONFIG)
    assert first.is_new and first.snapshot_uri == f"{dataset}@1"
    assert uris(first) == [f"p {seed:02d}%é.png" for seed in range(10)]
    before = tree(dataset)

    again = ingest(str(photos), dataset, config=CONFIG)
    assert not again.is_new and again.snapshot_uri == first.snapshot_uri and "nothing new" in again.summary
    assert tree(dataset) == before

    put_photos(photos, range(10, 12))
    second = ingest(str(photos), dataset, config=CONFIG)
    assert second.snapshot_uri == f"{dataset}@2" and uris(second) == [f"p {seed:02d}%é.png" for seed in range(12)]
    assert tree(dataset).items() >= {k: v for k, v in before.items() if k != "latest"}.items()
    one, two = (snapshot.open_dataset(made.snapshot_uri).manifest for made in (first, second))
    assert two.shards[:len(one.shards)] == one.shards and two.info["parent"] == 1
    assert uris(first) == [f"p {seed:02d}%é.png" for seed in range(10)]


@pytest.mark.slow
def test_law_a_changed_photo_takes_the_place_of_the_old(here, photos, tmp_path):
    dataset = str(tmp_path / "ds")
    ingest(str(photos), dataset, config=CONFIG)
    (photos / "p 03%é.png").write_bytes(encoded(picture(200, 180, 99)))
    made = ingest(str(photos), dataset, config=CONFIG)
    assert sorted(uris(made)) == [f"p {seed:02d}%é.png" for seed in range(10)]
    opened = snapshot.open_dataset(made.snapshot_uri)
    row = uris(made).index("p 03%é.png")
    assert_array_equal(opened.patch(row, r=180, y=0, x=0, size=180, view=0.0), np.asarray(picture(200, 180, 99))[:, :180])
    (photos / "p 03%é.png").write_bytes(b"broken now")
    broken = ingest(str(photos), dataset, config=CONFIG)
    assert "p 03%é.png" not in uris(broken) and len(uris(broken)) == 9
    assert not ingest(str(photos), dataset, config=CONFIG).is_new


@pytest.mark.slow
def test_law_of_equal_photos_the_first_by_uri_is_kept(here, photos, tmp_path):
    dataset = str(tmp_path / "ds")
    made = ingest(str(photos), dataset, config=CONFIG)
    assert "z copy.png" not in uris(made)
    assert snapshot.open_dataset(made.snapshot_uri).manifest.info["counts"]["rejected"] == {
        "duplicate": 1, "too_small": 1, "truncated": 1, "unsupported": 1}
    (photos / "p 00%é.png").write_bytes(encoded(picture(222, 111, 5)))
    assert "z copy.png" in uris(ingest(str(photos), dataset, config=CONFIG))  # its twin is gone, so now it counts


def test_law_a_second_source_adds_its_group(here, photos, tmp_path):
    dataset = str(tmp_path / "ds")
    ingest(str(photos), dataset, config=CONFIG, group="lr")
    put_photos(tmp_path / "more", range(20, 23))
    (tmp_path / "more" / "a known one.png").write_bytes((photos / "p 05%é.png").read_bytes())
    made = ingest(str(tmp_path / "more"), dataset, config=CONFIG, group="hr")
    manifest = snapshot.open_dataset(made.snapshot_uri).manifest
    assert manifest.info["counts"]["groups"] == {"hr": 3, "lr": 10} and manifest.group_names == ["hr", "lr"]
    assert not ingest(str(photos), dataset, config=CONFIG, group="lr").is_new


@pytest.mark.slow
def test_law_an_ingest_that_stops_anywhere_ends_the_same(here, tmp_path):
    """A crash before each write in turn, then the same command again."""
    photos, whole, dataset = tmp_path / "photos", str(tmp_path / "whole"), str(tmp_path / "turn")
    put_photos(photos, range(5), side=70)
    (photos / "notes.txt").write_bytes(b"not a photo")
    ingest(str(photos), whole, config=CONFIG)
    expected = snapshot_files(tree(whole))
    turn = 0
    while not finished_within(turn, lambda: ingest(str(photos), dataset, config=CONFIG)):
        ingest(str(photos), dataset, config=CONFIG)
        assert snapshot_files(tree(dataset)) == expected, turn
        shutil.rmtree(dataset)
        turn += 1
    assert turn >= 10  # a plan, two units of three writes, rejects, manifest, latest, record


def snapshot_files(files: dict[str, bytes]) -> dict[str, bytes]:
    """What readers see: shards, manifests, latest."""
    return {name: data for name, data in files.items() if not name.startswith("runs/")}


def test_law_the_summary_counts_everything(here, photos, tmp_path):
    made = ingest(str(photos), str(tmp_path / "ds"), config=CONFIG)
    words = made.summary.split()
    for line in ("images in 14", "kept 10", "rejected 4", "duplicate 1", "too_small 1", "truncated 1", "unsupported 1"):
        assert line in " ".join(words)
    assert "images/s" in words and "128 to 181" in " ".join(words)


def test_law_histogram_counts_each_side_once():
    sides = np.array([256, 256, 300, 362, 363, 511, 512, 4000])
    lines = ingest_report.histogram(sides).splitlines()
    found = [(int(a), int(b), int(c)) for a, _, b, c, *_ in (line.split() for line in lines)]
    assert sum(count for *_, count in found) == len(sides)
    for low, high, count in found:
        assert ((sides >= low) & (sides <= high)).sum() == count
    assert all(b[0] == a[1] + 1 for a, b in zip(found, found[1:], strict=False))


# ---------------------------------------------------------------- what passes is tried again


def refusing(monkeypatch: pytest.MonkeyPatch, refused: set[str], read: list[str]) -> None:
    """storage.read_object, which notes what it reads and refuses files of these names (403)."""
    real = storage.read_object

    def read_object(info: ObjectInfo) -> bytes:
        read.append(Path(info.uri).name)
        if read[-1] in refused:
            raise storage.Unreadable(f"{info.uri}: 403")
        return real(info)

    monkeypatch.setattr(storage, "read_object", read_object)


def test_law_a_refused_file_is_tried_again_though_the_last_ingest_made_no_snapshot(here, tmp_path, monkeypatch):
    put_photos(tmp_path / "p", range(3))
    (tmp_path / "p" / "b.png").write_bytes(encoded(picture(150, 140, 50)))
    dataset, refused, read = str(tmp_path / "ds"), {"b.png"}, []
    refusing(monkeypatch, refused, read)
    assert len(uris(ingest(str(tmp_path / "p"), dataset, config=CONFIG))) == 3
    for _ in range(2):  # its run is the same each time
        read.clear()
        assert not ingest(str(tmp_path / "p"), dataset, config=CONFIG).is_new and read == ["b.png"]
    refused.clear()
    made = ingest(str(tmp_path / "p"), dataset, config=CONFIG)
    assert made.snapshot_uri == f"{dataset}@2" and "b.png" in uris(made)


@pytest.mark.slow
@pytest.mark.parametrize("reason", ["unreadable", "no_decoder"])
def test_law_a_first_ingest_of_which_nothing_came_reads_again(here, photos, tmp_path, monkeypatch, reason):
    dataset, decode, read = str(tmp_path / "ds"), photo.decode, []
    refused = {path.name for path in photos.iterdir()} if reason == "unreadable" else set()

    def without_decoder(data: bytes, **limits: float) -> Image.Image:
        raise PhotoError("no_decoder", "install infd[heic]")

    refusing(monkeypatch, refused, read)
    if reason == "no_decoder":
        monkeypatch.setattr(photo, "decode", without_decoder)
    for _ in range(2):
        read.clear()
        with pytest.raises(DatasetError, match=rf"none of 14 files became a photo \({reason} 14\)"):
            ingest(str(photos), dataset, config=CONFIG)
        assert len(read) == 14
    refused.clear()
    monkeypatch.setattr(photo, "decode", decode)
    assert len(uris(ingest(str(photos), dataset, config=CONFIG))) == 10


@pytest.mark.slow
def test_law_a_file_at_which_its_process_dies_is_one_reject(tmp_path, monkeypatch):
    """A death is a KeyboardInterrupt here: nothing of the unit is written after it."""
    put_photos(tmp_path / "p", range(6))
    files, bad = list(storage.list_objects(str(tmp_path / "p"))), [2, 4]
    hostile, decode, deaths = [Path(files[i].uri).read_bytes() for i in bad], photo.decode, []

    def decode_or_die(data: bytes, **limits: float) -> Image.Image:
        if data in hostile:
            deaths.append(hostile.index(data))
            raise KeyboardInterrupt
        return decode(data, **limits)

    monkeypatch.setattr(photo, "decode", decode_or_die)
    run, session = f"{tmp_path}/ds/runs/x", ["driver 1"]

    def attempt() -> bool:
        try:
            run_unit(task_of(0, files), run_uri=run, dataset=str(tmp_path / "ds"), config=config_form.flat(CONFIG), group="",
                     session=session[0])
            return True
        except KeyboardInterrupt:
            return False

    assert not attempt() and not attempt() and not attempt() and deaths == [0, 0, 0]
    session[0] = "driver 2"  # whoever killed the first one killed its workers too: nothing is held against a file
    tries = 1
    while not attempt():
        tries += 1
    assert deaths[3:] == [0, 0, 1, 1] and tries == 5  # it had begun with names at once, so each died twice
    rejects = ingest_plan.read_rows(f"{run}/rejects/00000000.parquet")
    assert [(row["uri"], row["reason"], row["detail"]) for row in rejects] == [
        (files[i].uri, "killed", "2 times") for i in bad]
    assert "killed" in REASONS and "killed" in ingest_plan.PASSING
    assert not list(Path(run, "attempts").iterdir())
    (entry,) = ingest_plan.read_rows(f"{run}/done/00000000.parquet")
    alone = run_unit(task_of(0, [info for i, info in enumerate(files) if i not in bad]), run_uri=f"{tmp_path}/b/runs/x",
                     dataset=str(tmp_path / "b"), config=config_form.flat(CONFIG), group="")
    assert alone["files"] == 4 and ingest_plan.read_rows(f"{tmp_path}/b/runs/x/done/00000000.parquet") == [entry]


def test_law_an_undisturbed_unit_costs_two_small_requests_more(tmp_path, monkeypatch):
    put_photos(tmp_path / "p", range(3))
    files, written = list(storage.list_objects(str(tmp_path / "p"))), []

    def counting(name: str) -> Callable[..., None]:
        real = getattr(storage, name)

        def counted(uri: str, *rest: bytes) -> None:
            written.append((name, uri.rsplit("/", 2)[-2]))
            real(uri, *rest)

        return counted

    for name in ("put_if_absent", "put_atomic", "delete"):
        monkeypatch.setattr(storage, name, counting(name))
    run_unit(task_of(0, files), run_uri=f"{tmp_path}/ds/runs/x", dataset=str(tmp_path / "ds"), config=config_form.flat(CONFIG),
             group="", session="driver")
    assert written == [("put_if_absent", "attempts"), ("put_atomic", "rejects"), ("put_atomic", "done"), ("delete", "attempts")]


@pytest.mark.slow
def test_law_records_of_units_are_read_several_at_once(here, photos, tmp_path, monkeypatch):
    ingest(str(photos), str(tmp_path / "ds"), config=CONFIG)
    plan = ingest_plan.make_plan(str(photos), str(tmp_path / "b"), config=CONFIG, group="")
    shutil.copytree(next((tmp_path / "ds" / "runs").glob("*/plan.parquet")).parent, plan.uri())
    real, two = ingest_plan.read_rows, threading.Barrier(2, timeout=20)

    def read_rows(uri: str) -> list:
        two.wait()  # goes on only while another one is under way
        return real(uri)

    expected = ingest_plan.assemble(plan)
    assert len(plan.units) % 2 == 0 and expected.kept == 10
    monkeypatch.setattr(ingest_plan, "read_rows", read_rows)
    assert ingest_plan.assemble(plan) == expected


@pytest.mark.slow
def test_law_the_size_tells_versions_apart_where_a_store_gives_one_etag_for_all(here, photos, tmp_path, monkeypatch):
    one_etag_for_all(monkeypatch)
    read: list[str] = []
    refusing(monkeypatch, set(), read)
    dataset = str(tmp_path / "ds")
    assert len(uris(ingest(str(photos), dataset, config=CONFIG))) == 10
    (photos / "nothing.png").write_bytes(b"")
    ingest(str(photos), dataset, config=CONFIG)
    read.clear()
    (photos / "p 03%é.png").write_bytes(encoded(picture(200, 180, 99)))
    (photos / "notes.txt").write_bytes(b"not a photo, longer")
    made = ingest(str(photos), dataset, config=CONFIG)
    assert sorted(read) == ["notes.txt", "nothing.png", "p 03%é.png"] and made.snapshot_uri == f"{dataset}@2"
    opened = snapshot.open_dataset(dataset)
    row = uris(made).index("p 03%é.png")
    assert_array_equal(opened.patch(row, r=180, y=0, x=0, size=180, view=0.0), np.asarray(picture(200, 180, 99))[:, :180])
    read.clear()
    assert not ingest(str(photos), dataset, config=CONFIG).is_new and read == []


# ---------------------------------------------------------------- errors


@pytest.mark.slow
def test_error_sources_and_places_that_cannot_be(here, photos, tmp_path):
    dataset = str(tmp_path / "ds")
    for source, message in ((tmp_path / "none", "no file there"), (photos / "notes.txt", "expected a folder")):
        with pytest.raises(StorageError, match=message):
            ingest(str(source), dataset, config=CONFIG)
    with pytest.raises(ConfigError, match="lies inside the source"):
        ingest(str(tmp_path), dataset, config=CONFIG)
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_bytes(b"x")
    with pytest.raises(DatasetError, match=r"none of 1 files became a photo \(unsupported 1\)"):
        ingest(str(tmp_path / "texts"), dataset, config=CONFIG)
    ingest(str(photos), dataset, config=CONFIG)
    with pytest.raises(ConfigError, match=r"tile_px=256: snapshot 1 of .* has 128"):
        ingest(str(photos), dataset, config=IngestConfig(codec="png", min_side_px=64))


@pytest.mark.slow
def test_job_usage_errors_are_one_line(tmp_path):
    command = [sys.executable, str(ROOT / "jobs" / "ingest.py")]
    wrong = subprocess.run([*command, "--source", str(tmp_path / "none"), "--dataset", str(tmp_path / "ds")],
                           capture_output=True, text=True, check=False)
    assert wrong.returncode == 1 and wrong.stdout == ""
    assert wrong.stderr.splitlines() == [f"ingest: {tmp_path}/none: no file there; expected a folder or prefix with "
                                         "photos; check the address"]
    assert subprocess.run([*command, "--source", "x"], capture_output=True, check=False).returncode == 2


def test_error_an_ingest_into_one_snapshot_or_beside_another_ingest(photos, tmp_path, capsys):
    dataset = str(tmp_path / "ds")
    flags = ["--source", str(photos), "--min-side-px", "64"]
    assert ingest_job.main([*flags, "--dataset", f"{dataset}@7"]) == 2
    assert "names one snapshot, which never changes; expected the dataset's address" in capsys.readouterr().err
    with lease.held(f"{dataset}/runs/writer.lease", what="a test", beat_s=0.2):
        before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".lease"}
        assert ingest_job.main([*flags, "--dataset", dataset]) == 3
        assert {path: path.read_bytes() for path in before} == before and not list(Path(dataset, "runs").glob("*/plan.*"))
    out, err = capsys.readouterr()
    assert out == "" and f"ingest: ingest into {dataset}: process {os.getpid()} on " in err
    assert {path.name for path in tmp_path.iterdir()} == {"photos", "ds"}


@pytest.mark.slow
def test_error_settings_out_of_bounds_and_another_group_are_one_line(here, photos, tmp_path, capsys):
    flags = ["--source", str(photos), "--dataset", str(tmp_path / "ds"), "--codec", "png", "--min-side-px", "64"]
    assert ingest_job.main([*flags, "--val-fraction", "2"]) == 2
    assert capsys.readouterr().err == "ingest: val_fraction=2.0: must lie in [0, 1)\n"
    assert ingest_job.main([*flags, "--group", "lr"]) == 0
    capsys.readouterr()
    assert ingest_job.main([*flags, "--group", "hr"]) == 2
    assert "in the dataset with the group lr; a source keeps its group" in capsys.readouterr().err


def test_job_an_ingest_gives_its_lease_back(here, photos, tmp_path, capsys):
    flags = ["--source", str(photos), "--dataset", str(tmp_path / "ds"), "--codec", "png", "--min-side-px", "64"]
    assert ingest_job.main(flags) == 0 and ingest_job.main(flags) == 0
    assert capsys.readouterr().out == f"{tmp_path}/ds@1\n" * 2 and not list(tmp_path.glob("ds/runs/*.lease"))


# ---------------------------------------------------------------- through Ray


@pytest.mark.slow
def test_law_ray_writes_what_one_process_writes(ray_here, photos, tmp_path, monkeypatch):
    made = ingest(str(photos), str(tmp_path / "ray"), config=CONFIG, group="lr")
    assert made.is_new and len(uris(made)) == 10
    with monkeypatch.context() as patch:
        def run(plan: ingest_plan.Plan, tasks: list[dict]) -> None:
            for task in reversed(tasks):
                run_unit(task, run_uri=plan.uri(), dataset=plan.dataset, config=config_form.flat(plan.config),
                         group=plan.group)

        patch.setattr("pipelines.ingest.run_on_ray", run)
        ingest(str(photos), str(tmp_path / "here"), config=CONFIG, group="lr")
    assert tree(tmp_path / "ray") == tree(tmp_path / "here")
    assert not ingest(str(photos), str(tmp_path / "ray"), config=CONFIG, group="lr").is_new


@pytest.mark.slow
def test_error_a_unit_that_fails_ends_the_job_with_its_message(ray_here, photos, tmp_path):
    (tmp_path / "ds").mkdir()
    (tmp_path / "ds" / "shards").write_bytes(b"a file where the folder belongs")
    with pytest.raises(StorageError, match=r"ds/shards/.*check the"):
        ingest(str(photos), str(tmp_path / "ds"), config=CONFIG)


@pytest.mark.slow
def test_law_a_killed_job_goes_on_to_the_same_snapshot(photos, tmp_path):
    """SIGKILL to the whole job once some units are done; a cluster of its own, as on a bare machine."""
    put_photos(photos, range(30, 46), side=300)
    alone = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_ADDRESS", "RAY_AUTH"))}
    flags = ["--codec", "png", "--tile-px", "128", "--min-side-px", "64", "--shard-bytes", "200000"]

    def start(dataset: str) -> subprocess.Popen[str]:
        command = [sys.executable, str(ROOT / "jobs" / "ingest.py"), "--source", str(photos), "--dataset", dataset]
        return subprocess.Popen([*command, *flags], text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=alone,
                                start_new_session=True)

    killed, whole = str(tmp_path / "killed"), str(tmp_path / "whole")
    job = start(killed)
    while job.poll() is None and len(list(Path(killed).glob("runs/*/done/*.parquet"))) < 2:
        time.sleep(0.01)
    os.killpg(job.pid, signal.SIGKILL)
    job.communicate()
    Path(killed, "runs", "writer.lease").unlink()  # else the second would first watch it for half a minute
    done = len(list(Path(killed).glob("runs/*/done/*.parquet")))
    assert job.returncode == -signal.SIGKILL and not list(Path(killed).glob("snapshots/*"))

    second = start(killed)
    out, err = second.communicate()
    assert second.returncode == 0, err
    known = re.search(r"in (\d+) units, (\d+) of them done already", err)
    assert out == f"{killed}@1\n" and known
    assert done <= int(known[2]) < int(known[1])      # a worker lives a moment longer than its driver, and may end a unit
    plan = ingest_plan.make_plan(str(photos), whole, config=CONFIG, group="")
    ingest_plan.write_plan(plan)
    for number, unit in enumerate(plan.units):
        run_unit(task_of(number, unit), run_uri=plan.uri(), dataset=whole, config=config_form.flat(CONFIG), group="")
    ingest(str(photos), whole, config=CONFIG)
    assert snapshot_files(tree(killed)) == snapshot_files(tree(whole))


@pytest.mark.slow
def test_law_a_bucket_ingests_like_a_folder(bucket, ray_here, photos, tmp_path, monkeypatch):
    monkeypatch.setenv("INFD_CACHE", str(tmp_path / "cache"))
    for path in photos.iterdir():
        storage.put_file(storage.join(bucket, "photos", path.name), str(path))
    made = ingest(f"{bucket}/photos", f"{bucket}/ds", config=CONFIG)
    assert made.snapshot_uri == f"{bucket}/ds@1" and sorted(uris(made)) == [f"p {seed:02d}%é.png" for seed in range(10)]
    remote = snapshot.open_dataset(f"{bucket}/ds")
    assert_array_equal(remote.patch(0, r=150, y=0, x=0, size=150, view=0.0), np.asarray(picture(150, 150, 0)))
    assert not ingest(f"{bucket}/photos", f"{bucket}/ds", config=CONFIG).is_new
    with pytest.raises(StorageError, match="there is no bucket no-such-bucket"):
        ingest(f"{bucket}/photos", "s3://no-such-bucket/ds", config=CONFIG)
