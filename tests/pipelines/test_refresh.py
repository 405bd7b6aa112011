"""Refresh: what is new comes in verified or not at all, what is gone goes if asked, one at a time, stopped anywhere."""

import os
import shutil
from pathlib import Path

import pytest
from crashes import finished_within
from pictures import encoded, picture

from infd import config_form, lease, storage
from infd.config import IngestConfig
from infd.data import history, shards, snapshot, verify
from infd.errors import DatasetError, LeaseHeld, StorageError
from jobs import describe, refresh_dataset, snapshots
from jobs import ingest as ingest_job
from jobs import verify as verify_job
from pipelines import cluster, ingest_plan
from pipelines.ingest import ingest, run_unit
from pipelines.refresh import refresh

CONFIG = IngestConfig(codec="png", tile_px=128, min_side_px=64, shard_bytes=150_000)


def put_photos(folder: Path, seeds: range, side: int = 80) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for seed in seeds:
        (folder / f"p{seed:02d}.png").write_bytes(encoded(picture(side + 7 * seed, side, seed)))


@pytest.fixture(autouse=True)
def here(request, monkeypatch) -> None:
    """Units run in this process, one after the other: all of ingest but Ray; the test marked slow has Ray."""
    if "stack" in request.fixturenames:
        return

    def run(plan: ingest_plan.Plan, tasks: list[dict]) -> None:
        for task in tasks:
            run_unit(task, run_uri=plan.uri(), dataset=plan.dataset, config=config_form.flat(plan.config), group=plan.group)

    monkeypatch.setattr("pipelines.ingest.run_on_ray", run)


@pytest.fixture
def photos(tmp_path) -> Path:
    put_photos(tmp_path / "photos", range(6))
    (tmp_path / "photos" / "notes.txt").write_bytes(b"not a photo")
    return tmp_path / "photos"


@pytest.fixture
def dataset(photos, tmp_path) -> str:
    """Snapshot 1: six photos."""
    ingest(str(photos), str(tmp_path / "ds"), config=CONFIG, group="lr")
    return str(tmp_path / "ds")


def names(uri: str) -> list[str]:
    opened = snapshot.open_dataset(uri)
    return sorted(Path(opened[row]["uri"]).name for row in range(len(opened)))


def readers_see(root: str) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(Path(root).rglob("*"))
            if path.is_file() and path.relative_to(root).parts[0] != "runs" and not path.name.endswith(storage.LOCK)}


# ---------------------------------------------------------------- what comes, what goes


def test_law_refresh_takes_what_is_new_with_the_recorded_settings(dataset, photos):
    before = snapshot.open_dataset(dataset).manifest
    put_photos(photos, range(6, 9))
    (photos / "p02.png").write_bytes(encoded(picture(90, 100, 77)))
    done = refresh(dataset)
    assert (done.exit_code, done.snapshot_uri) == (0, f"{dataset}@2")
    after = snapshot.open_dataset(dataset).manifest
    assert names(dataset) == [f"p{i:02d}.png" for i in range(9)] and len(names(f"{dataset}@1")) == 6
    assert after.group_names == ["lr"] and after.info["config"] == before.info["config"] and after.info["parent"] == 1
    assert {entry.sha256 for entry in before.shards} <= {entry.sha256 for entry in after.shards}
    change = history.difference(f"{dataset}@1", dataset)
    assert [Path(uri).name for uri in change.added] == ["p06.png", "p07.png", "p08.png"]
    assert [Path(uri).name for uri in change.changed] == ["p02.png"] and change.removed == [] and change.unchanged == 5
    assert change.shared_shards == len(before.shards)
    assert Path(done.report_uri).read_text() == done.report
    for words in ("**new snapshot**", "10 files listed, 4 new or changed, 0 gone",
                  "nothing wrong", "p06.png", "Readers get snapshot 2 (before: 1)"):
        assert words in done.report, done.report


def test_law_refresh_reads_nothing_where_nothing_is_new(dataset, monkeypatch):
    monkeypatch.setattr(storage, "read_object", lambda info: pytest.fail(f"read {info}"))
    before = readers_see(dataset)
    done = refresh(dataset)
    assert (done.exit_code, done.snapshot_uri) == (0, f"{dataset}@1") and "**nothing new**" in done.report
    assert readers_see(dataset) == before
    reports = len(list(Path(dataset).glob("runs/*/refresh.md")))
    refresh(dataset)
    assert len(list(Path(dataset).glob("runs/*/refresh.md"))) == reports  # an hourly one leaves no heap of pages


def test_law_a_file_is_read_again_only_if_its_etag_or_size_changed(dataset, photos, monkeypatch):
    read: list[str] = []
    real = storage.read_object
    monkeypatch.setattr(storage, "read_object", lambda info: read.append(Path(info.uri).name) or real(info))
    stat = os.stat(photos / "p01.png")
    (photos / "p01.png").write_bytes(encoded(picture(90, 100, 77)))
    os.utime(photos / "p01.png", ns=(stat.st_atime_ns, stat.st_mtime_ns))  # the time of before, but another size
    os.utime(photos / "p03.png", ns=(1, 1))
    refresh(dataset)
    assert read == ["p01.png", "p03.png"]
    assert len(names(dataset)) == 6


def test_law_what_is_gone_stays_unless_removal_is_asked_for(dataset, photos):
    before = snapshot.open_dataset(dataset).manifest
    (photos / "p00.png").unlink()
    assert refresh(dataset).snapshot_uri == f"{dataset}@1" and len(names(dataset)) == 6
    done = refresh(dataset, remove_missing=True)
    assert done.snapshot_uri == f"{dataset}@2" and names(dataset) == [f"p{i:02d}.png" for i in range(1, 6)]
    assert len(names(f"{dataset}@1")) == 6 and "1 gone" in done.report and "p00.png" in done.report
    after = snapshot.open_dataset(dataset).manifest
    assert {e.sha256 for e in after.shards} <= {e.sha256 for e in before.shards}  # rows go, no byte is written
    assert refresh(dataset, remove_missing=True).snapshot_uri == f"{dataset}@2"
    (photos / "p00.png").write_bytes(encoded(picture(80, 80, 0)))
    refresh(dataset)
    assert len(names(dataset)) == 6 and verify.verify_full(dataset).findings == []


def test_law_a_removed_photos_twin_and_a_renamed_file_stay(dataset, photos):
    shutil.copy(photos / "p00.png", photos / "twin.png")
    (photos / "p01.png").rename(photos / "moved.png")
    put_photos(photos, range(6, 7))
    assert refresh(dataset).snapshot_uri == f"{dataset}@2" and history.facts(dataset, 2).rejected == 3
    assert "twin.png" not in names(dataset) and "moved.png" not in names(dataset)  # duplicates of what is there
    (photos / "p00.png").unlink()
    refresh(dataset, remove_missing=True)
    assert names(dataset) == ["moved.png", "p02.png", "p03.png", "p04.png", "p05.png", "p06.png", "twin.png"]


def test_law_a_vanished_reject_is_forgotten_with_the_next_removal(dataset, photos):
    (photos / "notes.txt").unlink()
    assert refresh(dataset, remove_missing=True).snapshot_uri == f"{dataset}@1"  # no photo changed
    (photos / "p00.png").unlink()
    refresh(dataset, remove_missing=True)
    assert history.facts(dataset, 1).rejected == 1 and history.facts(dataset, 2).rejected == 0


def test_job_ingest_removes_what_is_missing_if_asked(dataset, photos, capsys):
    (photos / "p00.png").unlink()
    flags = ["--source", str(photos), "--dataset", dataset, "--group", "lr", "--codec", "png", "--tile-px", "128",
             "--min-side-px", "64", "--shard-bytes", "150000"]
    assert ingest_job.main(flags) == 0 and len(names(dataset)) == 6
    assert ingest_job.main([*flags, "--remove-missing"]) == 0 and len(names(dataset)) == 5
    out, err = capsys.readouterr()
    assert out == f"{dataset}@1\n{dataset}@2\n" and "removed 1, their files are gone" in " ".join(err.split())


def test_law_each_source_is_refreshed_and_loses_only_its_own(dataset, photos, tmp_path):
    put_photos(tmp_path / "more", range(20, 23))
    ingest(str(tmp_path / "more"), dataset, config=CONFIG, group="hr")
    (photos / "p00.png").unlink()
    (tmp_path / "more" / "p20.png").unlink()
    put_photos(photos, range(6, 7))
    put_photos(tmp_path / "more", range(23, 24))
    done = refresh(dataset, remove_missing=True)
    assert done.exit_code == 0 and done.snapshot_uri == f"{dataset}@4"
    assert names(dataset) == [f"p{i:02d}.png" for i in (1, 2, 3, 4, 5, 6, 21, 22, 23)]
    assert snapshot.open_dataset(dataset).manifest.info["counts"]["groups"] == {"hr": 3, "lr": 6}
    assert done.report.count("## ") == 2
    assert refresh(dataset, remove_missing=True).snapshot_uri == f"{dataset}@4"


def test_law_rejects_are_tried_again_only_where_their_source_has_other_limits(dataset, photos, tmp_path, monkeypatch):
    put_photos(tmp_path / "more", range(20, 23))
    (tmp_path / "more" / "small.png").write_bytes(encoded(picture(40, 40)))
    limits = IngestConfig(**{**config_form.flat(CONFIG), "max_pixels": 80 * 230})
    ingest(str(tmp_path / "more"), dataset, config=limits, group="hr")  # the third is too large
    assert len(names(dataset)) == 8
    read: list[str] = []
    real = storage.read_object
    monkeypatch.setattr(storage, "read_object", lambda info: read.append(Path(info.uri).name) or real(info))
    assert refresh(dataset).snapshot_uri == f"{dataset}@2" and read == []
    ingest(str(tmp_path / "more"), dataset, config=CONFIG, group="hr")
    assert sorted(read) == ["p22.png", "small.png"] and len(names(dataset)) == 9


def test_law_an_empty_listing_or_the_last_photo_never_wipes_a_dataset(dataset, photos):
    before = readers_see(dataset)
    for path in photos.glob("*.png"):
        path.unlink()
    refused = refresh(dataset, remove_missing=True, most_removed=1)  # notes.txt is left
    assert refused.exit_code == 1 and "without them no photo would be left" in refused.report
    (photos / "notes.txt").unlink()
    empty = refresh(dataset, remove_missing=True, most_removed=1)
    assert empty.exit_code == 1 and "no file there" in empty.report and empty.report_uri == ""
    shutil.rmtree(photos)
    assert refresh(dataset, remove_missing=True).exit_code == 1
    with pytest.raises(StorageError, match="no file there"):
        ingest(str(photos), dataset, config=CONFIG, group="lr", remove_missing=True)
    assert readers_see(dataset) == before and len(names(dataset)) == 6


def test_law_a_source_that_lacks_most_of_its_photos_is_refused_unless_told(dataset, photos, tmp_path, capsys):
    put_photos(tmp_path / "more", range(20, 32))  # photos of another source do not count
    ingest(str(tmp_path / "more"), dataset, config=CONFIG, group="hr")
    for number in range(3):
        (photos / f"p{number:02d}.png").unlink()
    assert refresh_dataset.main(["--dataset", dataset, "--remove-missing"]) == 0  # just half
    (photos / "p03.png").unlink()
    (photos / "p04.png").unlink()
    put_photos(photos, range(6, 8))
    before = readers_see(dataset)
    capsys.readouterr()
    assert refresh_dataset.main(["--dataset", dataset, "--remove-missing"]) == 5
    out, err = capsys.readouterr()
    assert out == f"{dataset}@3\n" and "**failed**, exit code 5" in err
    assert (f"the files of 2 of the 3 photos from {photos} are gone, 67%; expected 50% at most; nothing was removed: check "
            f"the source, as {photos}/p03.png; if it is right, run this once with --most-removed 0.67") in err
    flags = ["--source", str(photos), "--dataset", dataset, "--group", "lr", "--codec", "png", "--tile-px", "128",
             "--min-side-px", "64", "--shard-bytes", "150000", "--remove-missing"]
    assert ingest_job.main(flags) == 5 and "ingest: " in capsys.readouterr().err
    assert readers_see(dataset) == before
    assert refresh_dataset.main(["--dataset", dataset, "--remove-missing", "--most-removed", "0.67"]) == 0
    assert [name for name in names(dataset) if name < "p20"] == ["p05.png", "p06.png", "p07.png"]
    for wrong in ("-0.1", "1.5", "nan"):
        assert refresh_dataset.main(["--dataset", dataset, "--most-removed", wrong]) == 2
        assert f"most_removed={float(wrong)}: must lie between 0 and 1" in capsys.readouterr().err


# ---------------------------------------------------------------- verification


def test_law_what_fails_verification_is_never_seen_and_is_written_anew(dataset, photos, monkeypatch, capsys):
    """A shard whose bytes went wrong on the way to the store."""
    put_photos(photos, range(6, 9))
    before, real = readers_see(dataset), storage.put_file

    def damaging(uri: str, path: str) -> None:
        data = bytearray(Path(path).read_bytes())
        data[len(data) // 2] ^= 1
        storage.put_atomic(uri, bytes(data))

    monkeypatch.setattr(storage, "put_file", damaging)
    for _ in range(2):
        assert refresh_dataset.main(["--dataset", dataset]) == 4
        out, err = capsys.readouterr()
        assert out == f"{dataset}@1\n" and "**failed**, exit code 4" in err and "What is wrong:" in err
        assert {k: v for k, v in readers_see(dataset).items() if k in before} == before
        assert snapshot.newest_number(dataset) == 1 and not storage.exists(snapshot.manifest_uri(dataset, 2))
    monkeypatch.setattr(storage, "put_file", real)
    assert refresh_dataset.main(["--dataset", dataset]) == 0  # no one had to clean up
    assert capsys.readouterr().out == f"{dataset}@2\n"
    assert verify.verify_full(dataset).findings == [] and len(names(dataset)) == 9


@pytest.mark.parametrize("harm", ["missing", "damaged"])
def test_law_lost_shards_are_named_and_repaired_from_the_source(dataset, photos, harm):
    """Told with nothing new too; what is written again is what was there."""
    before = {path: path.read_bytes() for path in Path(dataset, "shards").rglob("*.arrow")}
    victim, count = sorted(before)[0], len(snapshot.open_dataset(dataset))
    if harm == "missing":
        victim.unlink()
        told = refresh(dataset)
        assert told.exit_code == 4 and "1 of its shards are not in the store" in told.report
        assert "run this with --repair missing" in told.report
    else:
        data = bytearray(before[victim])
        data[len(data) // 2] ^= 1
        victim.write_bytes(data)
        assert refresh(dataset).exit_code == 0                      # its size is right: only who reads it knows
        assert refresh(dataset, repair="missing").exit_code == 0 and victim.read_bytes() == data
    assert refresh(dataset, repair=harm).exit_code == 0
    assert not verify.verify_full(dataset).findings
    opened = snapshot.open_dataset(dataset)
    assert len(opened) == count
    refreshed = refresh(dataset)
    assert refreshed.exit_code == 0 and "nothing new" in refreshed.report


def test_law_wrong_pixels_and_lost_old_shards_fail_too(dataset, photos, monkeypatch):
    put_photos(photos, range(6, 9), side=300)
    old = Path(dataset, shards.key(snapshot.open_dataset(dataset).manifest.shards[0].sha256))
    old.rename(old.with_suffix(".away"))
    lost = refresh(dataset)
    assert lost.exit_code == 4 and "1 of its shards are not in the store" in lost.report
    old.with_suffix(".away").rename(old)
    real = shards.photo_row
    monkeypatch.setattr(shards, "photo_row", lambda *a, **k: (row := real(*a, **k)) | {"lowres": row["tiles"][0]})
    shutil.rmtree(Path(dataset, "runs"))
    wrong = refresh(dataset)
    assert wrong.exit_code == 4 and "lowres has 128x128 pixels; expected 256x256" in wrong.report
    assert snapshot.newest_number(dataset) == 1


# ---------------------------------------------------------------- one at a time, stopped anywhere


@pytest.mark.slow
def test_law_two_refreshes_exclude_each_other(dataset, photos, monkeypatch, capsys):
    put_photos(photos, range(6, 8))
    codes = []
    real = verify.check

    def meanwhile(*args: object, **settings: object) -> verify.Report:
        codes.append(refresh_dataset.main(["--dataset", dataset]))
        return real(*args, **settings)

    monkeypatch.setattr(verify, "check", meanwhile)
    done = refresh(dataset)
    assert done.exit_code == 0 and done.snapshot_uri == f"{dataset}@2" and codes == [3]
    out, err = capsys.readouterr()
    assert out == "" and f"process {os.getpid()} on " in err
    monkeypatch.setattr(verify, "check", real)
    assert refresh(dataset).snapshot_uri == f"{dataset}@2"  # it was given back


def test_law_a_refresh_that_stops_anywhere_goes_on(photos, tmp_path):
    """A kill before each write in turn (nothing is written after it, the lease stays), then the same command again."""
    start, dataset = str(tmp_path / "start"), str(tmp_path / "turn")
    ingest(str(photos), start, config=CONFIG)
    put_photos(photos, range(6, 9))
    (photos / "p00.png").unlink()
    whole = shutil.copytree(start, tmp_path / "whole")
    refresh(str(whole), remove_missing=True)
    expected = readers_see(str(whole))
    turn, finished = 0, False
    while not finished:
        shutil.copytree(start, dataset)
        finished = finished_within(turn, lambda: refresh(dataset, remove_missing=True))
        assert readers_see(dataset).get("latest") in (b"1", b"2")
        again = refresh(dataset, remove_missing=True, patience_s=0.01)
        assert again.exit_code == 0 and again.snapshot_uri == f"{dataset}@2", turn
        assert readers_see(dataset) == expected, turn
        shutil.rmtree(dataset)
        turn += 1
    assert turn >= 9  # lease, plan, a unit of three writes, rejects, manifest, latest, record, report, lease


# ---------------------------------------------------------------- refusals, and the other jobs


def test_error_a_dataset_without_a_source_and_one_that_is_none(dataset, tmp_path, capsys):
    made = snapshot.write_dataset([("mem://a", encoded(picture(80, 80)))], str(tmp_path / "made"), CONFIG)
    with pytest.raises(DatasetError, match="it records no source"):
        refresh(made.uri)
    assert refresh(dataset).exit_code == 0
    assert refresh_dataset.main(["--dataset", str(tmp_path / "none")]) == 1
    assert "no snapshot there" in capsys.readouterr().err
    assert refresh_dataset.main(["--dataset", f"{dataset}@1"]) == 2
    assert "names one snapshot, which never changes" in capsys.readouterr().err
    assert refresh_dataset.main(["--dataset", dataset, "--sample", "-1"]) == 2
    assert "sample=-1: must not be below 0" in capsys.readouterr().err


def test_job_verify_lists_all_that_is_wrong(dataset, capsys):
    assert verify_job.main(["--dataset", dataset, "--full"]) == 0
    out, err = capsys.readouterr()
    assert out == "" and "nothing wrong" in err
    entries = snapshot.open_dataset(dataset).manifest.shards
    for entry in entries[:2]:
        Path(dataset, shards.key(entry.sha256)).unlink()
    assert verify_job.main(["--dataset", f"{dataset}@1", "--sample", "2"]) == 1
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 2 and all(entry.sha256 in out for entry in entries[:2]) and "2 things wrong" in err
    assert verify_job.main(["--dataset", f"{dataset}@9"]) == 1
    assert "no such snapshot; its newest snapshot is 1" in capsys.readouterr().err


def test_job_snapshots_lists_and_compares(dataset, photos, capsys):
    put_photos(photos, range(6, 8))
    (photos / "p00.png").unlink()
    (photos / "p01.png").rename(photos / "q01.png")
    refresh(dataset, remove_missing=True)
    assert snapshots.main(["list", dataset]) == 0
    head, first, second = capsys.readouterr().out.splitlines()
    assert head.split() == ["snapshot", "parent", "photos", "shards", "bytes", "rejected", "group"]
    assert first.split()[:3] == ["1", "-", "6"] and second.split()[:3] == ["2", "1", "7"] and second.split()[-2:] == ["1", "lr"]
    assert snapshots.main(["diff", f"{dataset}@1", dataset, "--limit", "1"]) == 0
    out = capsys.readouterr().out
    for words in (f"{dataset}@1 → {dataset}@2", "added 3", "removed 2", "… and 2 more", "renamed 1", "unchanged 4",
                  f"p01.png → {photos}/q01.png"):
        assert words in " ".join(out.split()), out
    assert snapshots.main(["diff", f"{dataset}@1", f"{dataset}@7"]) == 1
    assert "no such snapshot" in capsys.readouterr().err


def test_error_the_lease_names_its_holder(dataset):
    with lease.held(f"{dataset}/runs/writer.lease", what="a test", beat_s=0.2), \
            pytest.raises(LeaseHeld, match=f"process {os.getpid()} on .* works on it"):
        refresh(dataset, patience_s=3)


@pytest.mark.slow
def test_law_a_bucket_is_refreshed_through_ray(stack, bucket, photos, tmp_path, capsys):
    def put(path: Path) -> None:
        storage.put_file(storage.join(bucket, "photos", path.name), str(path))

    for path in photos.iterdir():
        put(path)
    with cluster.connect():
        ingest(f"{bucket}/photos", f"{bucket}/ds", config=CONFIG, group="lr")
        put_photos(tmp_path / "new", range(6, 9))
        for path in (tmp_path / "new").iterdir():
            put(path)
        storage.delete(f"{bucket}/photos/p00.png")
        assert refresh_dataset.main(["--dataset", f"{bucket}/ds", "--remove-missing"]) == 0
    out, err = capsys.readouterr()
    assert out == f"{bucket}/ds@2\n" and "nothing wrong" in err and "1 gone" in err
    assert names(f"{bucket}/ds") == [f"p{i:02d}.png" for i in range(1, 9)]
    assert verify_job.main(["--dataset", f"{bucket}/ds", "--full"]) == 0
    assert snapshots.main(["list", f"{bucket}/ds"]) == 0
    assert [line.split()[2] for line in capsys.readouterr().out.splitlines()] == ["photos", "6", "8"]
    assert describe.main(["--dataset", f"{bucket}/ds", "--out", str(tmp_path / "page.html")]) == 0
    assert "p08.png" in (tmp_path / "page.html").read_text()
    with lease.held(f"{bucket}/ds/runs/writer.lease", what="a test", beat_s=0.5):
        assert refresh_dataset.main(["--dataset", f"{bucket}/ds"]) == 3
    assert refresh_dataset.main(["--dataset", f"{bucket}/ds"]) == 0
