"""An ingest that was cut short, and whose source changed before it was run again."""

import os
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
from pictures import encoded, picture
from stores import one_etag_for_all

from infd import config_form, storage
from infd.config import IngestConfig
from infd.data import photo, snapshot, verify
from infd.errors import PhotoError
from pipelines import ingest_carry, ingest_plan
from pipelines.ingest import Ingested, ingest, run_unit

CONFIG = IngestConfig(codec="png", tile_px=64, min_side_px=48, shard_bytes=40_000, unit_photos=4)


def put_photo(folder: Path, name: str, seed: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(encoded(picture(60 + seed % 7, 52 + seed % 5, seed)))


@pytest.fixture
def photos(tmp_path) -> Path:
    """24 photos and two files that are none: seven units."""
    for seed in range(24):
        put_photo(tmp_path / "photos", f"p{seed:02d}.png", seed)
    for name in ("p05 notes.txt", "q notes.txt"):
        (tmp_path / "photos" / name).write_bytes(b"not a photo")
    return tmp_path / "photos"


class Worker:
    """Does units in this process, one after the other; `units` counts down to the kill. `read` are the files' names."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.units, self.read, self._read_object = 10**9, [], storage.read_object
        monkeypatch.setattr("pipelines.ingest.run_on_ray", self.run)
        monkeypatch.setattr(storage, "read_object", self.read_object)

    def run(self, plan: ingest_plan.Plan, tasks: list[dict]) -> None:
        for task in tasks:
            if not self.units:
                raise KeyboardInterrupt
            self.units -= 1
            run_unit(task, run_uri=plan.uri(), dataset=plan.dataset, config=config_form.flat(plan.config), group=plan.group)

    def read_object(self, info: storage.ObjectInfo) -> bytes:
        self.read.append(Path(info.uri).name)
        return self._read_object(info)

    def killed_after(self, units: int, source: Path, dataset: str, **settings: bool) -> list[str]:
        """An ingest that ends after so many units; the files that it read."""
        self.units, self.read = units, []
        with pytest.raises(KeyboardInterrupt):
            ingest(str(source), dataset, config=CONFIG, **settings)
        return self.read

    def whole(self, source: Path, dataset: str, **settings: bool) -> tuple[Ingested, list[str]]:
        """An ingest to its end, and the files that it read."""
        self.units, self.read = 10**9, []
        return ingest(str(source), dataset, config=CONFIG, **settings), sorted(self.read)


@pytest.fixture
def worker(monkeypatch) -> Worker:
    return Worker(monkeypatch)


def content(dataset: str) -> dict[str, tuple]:
    """What each photo is, and each reject; not where it stands."""
    opened = snapshot.open_dataset(dataset)
    run = opened.manifest.info["run"]
    rejects = {row["uri"]: tuple(row.values()) for row in ingest_plan.read_rows(f"{dataset}/runs/{run}/rejects.parquet")}
    rows = [(opened[row], opened.photo(row)) for row in range(len(opened))]
    assert len({facts["uri"] for facts, _ in rows}) == len(rows)
    return rejects | {facts["uri"]: (facts["image_id"], facts["etag"], facts["split"], facts["group"], bytes(stored.lowres),
                                     tuple(map(bytes, stored.tiles))) for facts, stored in rows}


def changed(folder: Path) -> None:
    """The source gains, loses and changes files, at its begin, in its middle and at its end."""
    put_photo(folder, "a new.png", 30)
    put_photo(folder, "p01 new.png", 31)
    put_photo(folder, "z new.png", 32)
    put_photo(folder, "p02.png", 33)
    put_photo(folder, "p21.png", 34)
    (folder / "p06.png").unlink()
    (folder / "p20.png").unlink()
    shutil.copy(folder / "p09.png", folder / "b copy.png")  # of these two the first by name is the photo, the second not
    (folder / "p05 notes.txt").unlink()
    (folder / "q notes.txt").unlink()


@pytest.mark.slow
def test_law_no_photo_is_read_twice_though_the_source_changed(photos, tmp_path, worker):
    dataset, undisturbed = str(tmp_path / "ds"), str(tmp_path / "undisturbed")
    first = worker.killed_after(4, photos, dataset)
    assert len(first) == 16
    before = {path.name: path.stat().st_mtime_ns for path in photos.iterdir()}
    changed(photos)
    same = {path.name for path in photos.iterdir() if before.get(path.name) == path.stat().st_mtime_ns}
    made, read = worker.whole(photos, dataset)
    assert read == sorted({path.name for path in photos.iterdir()} - (same & set(first)))
    assert len(read) == 26 - 13  # 16 read, of them p02 has changed, p06 and the notes are gone
    expected, all_files = worker.whole(photos, undisturbed)
    assert len(all_files) == 26
    assert content(dataset) == content(undisturbed)
    assert made.snapshot_uri == f"{dataset}@1" and verify.verify_full(dataset).findings == []
    assert made.outcome and expected.outcome and made.outcome.kept == expected.outcome.kept == 25
    facts = [snapshot.open_dataset(uri).manifest.info["counts"] for uri in (dataset, undisturbed)]
    assert [each["photos"] for each in facts] == [25, 25] and facts[0]["rejected"] == facts[1]["rejected"]
    again, read = worker.whole(photos, dataset)
    assert not again.is_new and read == [] and not list(Path(dataset, "runs", "unfinished").iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_law_cut_short_again_and_again_while_the_source_changes(photos, tmp_path, worker, seed):
    """Each round some units are done and some files come, go or change: in the end nothing was read twice in one version."""
    chance, dataset = random.Random(seed), str(tmp_path / "ds")
    reads: list[tuple[str, int]] = []
    for turn in range(6):
        read = worker.killed_after(chance.randint(0, 2), photos, dataset)
        reads += [(name, (photos / name).stat().st_mtime_ns) for name in read]
        names = sorted(path.name for path in photos.glob("*.png"))
        if turn == 3:
            continue  # the same listing once more
        for name in chance.sample(names, 2):
            (photos / name).unlink()
        for name in chance.sample(names, 2):
            put_photo(photos, name, 50 + chance.randrange(1000))
        put_photo(photos, f"{chance.choice('apz')}{turn}.png", 40 + turn)
    _, read = worker.whole(photos, dataset)
    reads += [(name, (photos / name).stat().st_mtime_ns) for name in read]
    assert len(reads) == len(set(reads))
    worker.whole(photos, str(tmp_path / "undisturbed"))
    assert content(dataset) == content(str(tmp_path / "undisturbed"))
    assert verify.verify_full(dataset).findings == []


@pytest.mark.slow
def test_law_a_continued_ingest_that_is_cut_short_goes_on_under_its_own_name(photos, tmp_path, worker):
    """Then it is a run like any other: cut short and run again it gives the same bytes as without the second cut."""
    worker.killed_after(3, photos, str(tmp_path / "a"))
    changed(photos)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    made, _ = worker.whole(photos, str(tmp_path / "a"))
    assert len(worker.killed_after(2, photos, str(tmp_path / "b"))) > 0
    again, _ = worker.whole(photos, str(tmp_path / "b"))
    assert made.plan.run != "" and made.plan.carried == (0, 1, 2) and again.plan.carried == ()
    for path in (*Path(tmp_path / "a").glob("snapshots/*"), *Path(tmp_path / "a").rglob("*.arrow")):
        assert (tmp_path / "b" / path.relative_to(tmp_path / "a")).exists()
    assert [entry["sha256"] for entry in made.outcome.entries] == [entry["sha256"] for entry in again.outcome.entries]
    assert content(str(tmp_path / "a")) == content(str(tmp_path / "b"))


@pytest.mark.slow
def test_law_an_ingest_that_stops_while_it_takes_over_loses_nothing(photos, tmp_path, worker, monkeypatch):
    first = worker.killed_after(3, photos, str(tmp_path / "start"))
    changed(photos)
    real = storage.put_atomic
    for turn in range(8):  # the plan, three units of two records, and the name of the run
        dataset, left = str(shutil.copytree(tmp_path / "start", tmp_path / f"turn {turn}")), [turn]

        def dying(uri: str, data: bytes, left: list[int] = left) -> None:
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt
            real(uri, data)

        with monkeypatch.context() as patch:
            patch.setattr(storage, "put_atomic", dying)
            assert worker.killed_after(10**9, photos, dataset) == []
        _, read = worker.whole(photos, dataset)
        assert set(read) & set(first) == {"p02.png"}, turn


@pytest.mark.slow
def test_law_done_units_outlive_a_snapshot_of_another_source(photos, tmp_path, worker):
    dataset = str(tmp_path / "ds")
    first = worker.killed_after(4, photos, dataset)
    for seed in range(60, 65):
        put_photo(tmp_path / "more", f"m{seed}.png", seed)
    put_photo(tmp_path / "more", "equal to p03.png", 3)
    assert worker.whole(tmp_path / "more", dataset)[0].snapshot_uri == f"{dataset}@1"
    made, read = worker.whole(photos, dataset)
    assert made.snapshot_uri == f"{dataset}@2" and set(read).isdisjoint(first) and len(read) == 10
    undisturbed = str(tmp_path / "undisturbed")
    worker.whole(tmp_path / "more", undisturbed)
    worker.whole(photos, undisturbed)
    assert content(dataset) == content(undisturbed) and verify.verify_full(dataset).findings == []


def test_law_a_run_that_ended_is_not_continued(photos, tmp_path, worker, monkeypatch):
    """Killed between the manifest and the end: what that run wrote is the parent's, and no unit of it counts again."""
    dataset = str(tmp_path / "ds")
    with monkeypatch.context() as patch:
        patch.setattr(ingest_carry, "finish", lambda plan: None)
        worker.whole(photos, dataset)
    gone = {name: (photos / name).read_bytes() for name in ("p00.png", "p01.png")}
    times = {name: os.stat(photos / name).st_mtime_ns for name in gone}
    for name in gone:
        (photos / name).unlink()
    assert worker.whole(photos, dataset, remove_missing=True)[0].snapshot_uri == f"{dataset}@2"
    with monkeypatch.context() as patch:
        patch.setattr(ingest_carry, "unfinished", lambda plan: snapshot.open_dataset(f"{dataset}@1").manifest.info["run"])
        for name, data in gone.items():
            (photos / name).write_bytes(data)
            os.utime(photos / name, ns=(times[name], times[name]))
        made, read = worker.whole(photos, dataset)
    assert read == ["p00.png", "p01.png"] and made.plan.carried == () and made.outcome and made.outcome.kept == 2
    assert verify.verify_full(dataset).findings == []


@pytest.mark.slow
def test_law_what_could_not_be_read_is_tried_again(photos, tmp_path, worker, monkeypatch):
    dataset, large = str(tmp_path / "ds"), (photos / "p03.png").read_bytes()
    real = photo.decode

    def decode(data: bytes, **limits: float) -> object:
        if data == large:
            raise PhotoError("no_decoder")
        return real(data, **limits)

    with monkeypatch.context() as patch:
        patch.setattr(photo, "decode", decode)
        assert "p03.png" in worker.killed_after(3, photos, dataset)
    put_photo(photos, "z new.png", 30)
    _, read = worker.whole(photos, dataset)
    assert read[0] == "p03.png" and len(read) == 1 + 14 + 1
    worker.whole(photos, str(tmp_path / "undisturbed"))
    assert content(dataset) == content(str(tmp_path / "undisturbed"))


@pytest.mark.slow
def test_law_done_units_are_kept_where_a_store_gives_one_etag_for_all(photos, tmp_path, monkeypatch):
    one_etag_for_all(monkeypatch)
    worker, dataset = Worker(monkeypatch), str(tmp_path / "ds")
    first = worker.killed_after(3, photos, dataset)
    (photos / "p02.png").write_bytes(encoded(picture(90, 80, 70)))
    put_photo(photos, "z new.png", 30)
    _, read = worker.whole(photos, dataset)
    assert set(read) & set(first) == {"p02.png"} and len(read) == 14 + 2
    worker.whole(photos, str(tmp_path / "undisturbed"))
    assert content(dataset) == content(str(tmp_path / "undisturbed"))


@pytest.mark.slow
def test_law_other_settings_take_nothing_over(photos, tmp_path, worker):
    dataset = str(tmp_path / "ds")
    worker.killed_after(3, photos, dataset)
    put_photo(photos, "z new.png", 30)
    worker.read = []
    worker.units = 10**9
    made = ingest(str(photos), dataset, config=CONFIG, group="hr")
    assert made.plan.carried == () and len(worker.read) == 27
    assert np.unique(snapshot.open_dataset(dataset).manifest.group_names).tolist() == ["hr"]
