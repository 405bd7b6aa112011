"""Ingest and refresh killed at random points by SIGKILL, and two ingests into one dataset at once."""

import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from pictures import encoded, picture

from infd import storage
from infd.config import IngestConfig
from infd.data import snapshot
from infd.errors import PreconditionFailed
from pipelines.ingest import ingest

ROOT = Path(__file__).resolve().parents[2]
CONFIG = IngestConfig(codec="png", tile_px=64, min_side_px=48, shard_bytes=30_000)
KILLS, FEW_KILLS, REFRESH_KILLS, JOB_KILLS = 20, 2, 3, 4

WITHOUT_RAY = """
import sys
from infd import config_form
from infd.config import IngestConfig
from pipelines import ingest as job
from pipelines import refresh
def run(plan, tasks):
    for task in tasks:
        job.run_unit(task, run_uri=plan.uri(), dataset=plan.dataset, config=config_form.flat(plan.config), group=plan.group)
job.run_on_ray = run
print("begins", flush=True)
"""
INGEST = WITHOUT_RAY + """
job.ingest(sys.argv[1], sys.argv[2], config=IngestConfig(codec="png", tile_px=64, min_side_px=48, shard_bytes=30_000))
"""
REFRESH = WITHOUT_RAY + """
sys.exit(refresh.refresh(sys.argv[1], remove_missing=True, patience_s=1).exit_code)
"""


def put_photos(folder: Path, seeds: range) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    for seed in seeds:
        (folder / f"p {seed:03d}.png").write_bytes(encoded(picture(200 + seed % 7, 180 + seed % 5, seed)))
    (folder / "notes.txt").write_bytes(b"no photo")
    return str(folder)


def readers_see(dataset: str | Path) -> dict[str, bytes]:
    """Shards, manifests, latest."""
    return {str(path.relative_to(dataset)): path.read_bytes() for path in sorted(Path(dataset).rglob("*"))
            if path.is_file() and path.relative_to(dataset).parts[0] != "runs"}


@pytest.mark.slow
@pytest.mark.parametrize("least", [FEW_KILLS, pytest.param(KILLS, marks=pytest.mark.long)])
def test_law_one_process_killed_at_random_points_ends_the_same(tmp_path, least):
    """Each kill at a random moment between the ingest's begin and a little after its usual end."""
    source, whole = put_photos(tmp_path / "photos", range(40)), str(tmp_path / "whole")

    def start(dataset: str) -> subprocess.Popen[str]:
        job = subprocess.Popen([sys.executable, "-c", INGEST, source, dataset], stdout=subprocess.PIPE, text=True, cwd=ROOT)
        assert job.stdout is not None and job.stdout.readline() == "begins\n"
        return job

    began_s = time.monotonic()
    assert start(whole).wait() == 0
    usual_s = time.monotonic() - began_s
    expected, chance = readers_see(whole), random.Random(9)
    kills, turn, at = 0, 0, []
    while kills < least:
        dataset = str(tmp_path / f"turn {turn}")
        while True:
            job = start(dataset)
            time.sleep(chance.uniform(0, 0.6) * usual_s)
            job.kill()
            if job.wait() == 0:
                break
            kills += 1
            at.append(len(list(Path(dataset).glob("runs/*/done/*.parquet"))))
            assert snapshot_is_whole_or_absent(dataset, expected)
        seen = readers_see(dataset)
        assert seen.keys() >= expected.keys(), (dataset, seen.keys() ^ expected.keys())
        assert {name: seen[name] for name in expected} == expected
        assert all(name.endswith(storage.PARTIAL) for name in seen.keys() - expected.keys())
        turn += 1
    print(f"\n{kills} kills in {turn} ingests, after {at} units were done; undisturbed {usual_s:.1f} s")


def snapshot_is_whole_or_absent(dataset: str, expected: dict[str, bytes], number: int = 1) -> bool:
    name = f"snapshots/{number:08d}.parquet"
    return not Path(dataset, name).exists() or Path(dataset, name).read_bytes() == expected[name]


def alone() -> dict[str, str]:
    """The environment of a process that has a Ray of its own."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("RAY_ADDRESS", "RAY_AUTH"))}


def end(job: subprocess.Popen[str]) -> None:
    """SIGKILL to a job with its whole cluster."""
    family = psutil.Process(job.pid).children(recursive=True)
    os.killpg(job.pid, signal.SIGKILL)
    for process in family:  # those that made sessions of their own
        with suppress(psutil.Error):
            process.kill()
    job.communicate()


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_law_ray_killed_at_random_points_ends_the_same(tmp_path):
    """20 kills, by turns of the driver with its whole cluster and of one worker, which Ray starts again."""
    source, whole = put_photos(tmp_path / "photos", range(120)), str(tmp_path / "whole")
    flags = ["--codec", "png", "--tile-px", "64", "--min-side-px", "48", "--shard-bytes", "30000"]

    def start(dataset: str) -> subprocess.Popen[str]:
        command = [sys.executable, str(ROOT / "jobs" / "ingest.py"), "--source", source, "--dataset", dataset, *flags]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=alone(),
                                start_new_session=True)

    def workers(job: subprocess.Popen[str]) -> list[psutil.Process]:
        """Those that run units or wait for one; not Ray's agents, without which a node ends, and the job with it."""
        with suppress(psutil.Error):
            family = psutil.Process(job.pid).children(recursive=True)
            return [p for p in family if p.name().startswith(("ray::Map", "ray::IDLE"))]
        return []

    began_s = time.monotonic()
    first = start(whole)
    assert first.wait() == 0, first.communicate()[1]
    usual_s = time.monotonic() - began_s
    expected, chance = readers_see(whole), random.Random(10)
    drivers, killed_workers, turn = 0, 0, 0
    while drivers + killed_workers < KILLS:
        dataset = str(tmp_path / f"turn {turn}")
        while True:
            job = start(dataset)
            over_s = time.monotonic() + chance.uniform(0.3, 1.0) * usual_s
            kill_driver = chance.random() < 0.5
            while time.monotonic() < over_s and job.poll() is None:
                time.sleep(0.05)
            if job.poll() is None and kill_driver and drivers < KILLS // 2:
                end(job)
                drivers += 1
                assert snapshot_is_whole_or_absent(dataset, expected)
                continue
            if job.poll() is None and (found := workers(job)):
                with suppress(psutil.Error):
                    chance.choice(found).kill()
                    killed_workers += 1
            out, err = job.communicate()
            assert job.returncode == 0, err
            break
        seen = readers_see(dataset)
        assert seen.keys() >= expected.keys(), (dataset, seen.keys() ^ expected.keys())
        assert {name: seen[name] for name in expected} == expected
        assert all(name.endswith(storage.PARTIAL) for name in seen.keys() - expected.keys())
        turn += 1
    print(f"\n{drivers} kills of drivers, {killed_workers} of workers, {turn} ingests; undisturbed {usual_s:.1f} s")


# ---------------------------------------------------------------- refresh


@pytest.fixture
def grown(tmp_path, here) -> tuple[str, dict[str, bytes], float]:
    """A dataset of one snapshot whose source has changed since; what readers of it see after an undisturbed refresh without
    Ray, and how long that took after its begin."""
    source, start = Path(put_photos(tmp_path / "photos", range(30))), str(tmp_path / "start")
    ingest(str(source), start, config=CONFIG)
    put_photos(source, range(30, 60))
    for number in range(3):
        (source / f"p {number:03d}.png").unlink()
    (source / "p 003.png").write_bytes(encoded(picture(190, 200, 99)))
    whole = str(shutil.copytree(start, tmp_path / "whole"))
    job = refresh_without_ray(whole)
    began_s = time.monotonic()
    assert job.wait() == 0
    return start, readers_see(whole), time.monotonic() - began_s


def refresh_without_ray(dataset: str) -> subprocess.Popen[str]:
    """A process that refreshes and has just begun; it takes over a lease that stood still for a second."""
    job = subprocess.Popen([sys.executable, "-c", REFRESH, dataset], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert job.stdout is not None and job.stdout.readline() == "begins\n"
    return job


def without_leftovers(dataset: str) -> dict[str, bytes]:
    """What readers see, without half-written files and locks, which nothing lists."""
    return {name: data for name, data in readers_see(dataset).items() if not name.endswith((storage.PARTIAL, storage.LOCK))}


@pytest.mark.long
def test_law_a_refresh_killed_at_random_points_ends_the_same(grown, tmp_path):
    start, seen, usual_s = grown
    expected = {name: data for name, data in seen.items() if not name.endswith(storage.LOCK)}
    chance, kills, turn = random.Random(11), 0, 0
    while kills < REFRESH_KILLS:
        dataset = str(shutil.copytree(start, tmp_path / f"turn {turn}"))
        while True:
            job = refresh_without_ray(dataset)
            time.sleep(chance.uniform(0, 1.3) * (usual_s + 1))  # a second for the dead one's lease
            job.kill()
            if (code := job.wait()) == 0:
                break
            assert code == -signal.SIGKILL
            kills += 1
            assert snapshot_is_whole_or_absent(dataset, expected, 2)
        assert without_leftovers(dataset) == expected
        turn += 1
    print(f"\n{kills} kills in {turn} refreshes; undisturbed {usual_s:.1f} s")


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_job_a_refresh_killed_with_its_cluster_ends_the_same(grown, tmp_path):
    """The job itself: SIGKILL to it and its Ray some time after a random number of units, and again until it ends with 0.
    The next run takes the dead one's lease after the half minute that the docs name, and never ends with 3."""
    start, seen, _ = grown
    expected = {name: data for name, data in seen.items() if not name.endswith(storage.LOCK)}

    def begun(dataset: str) -> subprocess.Popen[str]:
        command = [sys.executable, str(ROOT / "jobs" / "refresh_dataset.py"), "--dataset", dataset, "--remove-missing"]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=alone(),
                                start_new_session=True)

    def done(dataset: str) -> int:
        return len(list(Path(dataset).glob("runs/*/done/*.parquet"))) - already

    already = 0
    already = done(start)
    whole = str(shutil.copytree(start, tmp_path / "whole through ray"))
    first = begun(whole)
    out, err = first.communicate()
    assert first.returncode == 0, err
    assert without_leftovers(whole) == expected
    chance, dataset, at = random.Random(12), str(shutil.copytree(start, tmp_path / "killed")), []
    for least in (0, *sorted(chance.sample(range(1, done(whole) + 1), JOB_KILLS - 1))):
        lease = Path(dataset, "runs", "writer.lease")
        left = lease.read_bytes() if lease.exists() else b""
        job = begun(dataset)
        while job.poll() is None and (done(dataset) < least or not lease.exists() or lease.read_bytes() == left):
            time.sleep(0.01)  # while it watches the lease, a kill would kill the watcher alone
        time.sleep(chance.uniform(0, 1))
        if job.poll() is not None:
            out, err = job.communicate()
            assert job.returncode == 0, err
            break
        end(job)
        at.append(done(dataset))
        assert snapshot_is_whole_or_absent(dataset, expected, 2)
    began_s = time.monotonic()
    last = begun(dataset)
    out, err = last.communicate()
    assert last.returncode == 0, err
    assert out == f"{dataset}@2\n" and without_leftovers(dataset) == expected
    assert err.count("watching for 30 s") <= 1 and not Path(dataset, "runs", "writer.lease").exists()
    assert len(at) > 1
    print(f"\nkilled after {at} of {done(whole)} units; the last run took {time.monotonic() - began_s:.0f} s")


# ---------------------------------------------------------------- two at once


@pytest.fixture(params=["folder", pytest.param("bucket", marks=pytest.mark.slow)])
def place(request, tmp_path) -> str:
    return request.getfixturevalue("bucket") if request.param == "bucket" else str(tmp_path)


def test_law_of_two_ingests_at_once_one_wins_and_the_other_says_so(place, tmp_path, here, monkeypatch):
    """Both are ready to commit snapshot 1 when the first does. The loser runs again and goes on from there."""
    sources = [put_photos(tmp_path / name, seeds) for name, seeds in (("a", range(5)), ("b", range(10, 15)))]
    dataset = storage.join(place, "ds")
    ready, commit = threading.Barrier(2), snapshot.commit

    def both_ready(*args: object) -> str:
        ready.wait(60)
        return commit(*args)

    monkeypatch.setattr(snapshot, "commit", both_ready)
    won: dict[str, str] = {}
    lost: dict[str, str] = {}

    def run(source: str) -> None:
        try:
            won[source] = ingest(source, dataset, config=CONFIG).snapshot_uri
        except PreconditionFailed as error:
            lost[source] = str(error)

    threads = [threading.Thread(target=run, args=(source,)) for source in sources]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert list(won.values()) == [f"{dataset}@1"] and len(lost) == 1
    (loser, said), = lost.items()
    assert "another ingest committed snapshot 1 first; run this one again" in said
    names = [info.uri.removeprefix(f"{dataset}/") for info in storage.list_objects(dataset)]
    assert [name for name in names if name.startswith("snapshots/")] == ["snapshots/00000001.parquet"]
    assert storage.read_bytes(f"{dataset}/latest") == b"1"
    assert snapshot.open_dataset(dataset).manifest.info["source"] in won
    monkeypatch.setattr(snapshot, "commit", commit)
    assert ingest(loser, dataset, config=CONFIG).snapshot_uri == f"{dataset}@2"
    assert len(snapshot.open_dataset(f"{dataset}@2")) == 10
