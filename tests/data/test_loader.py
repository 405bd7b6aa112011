"""Laws of the loader, on small datasets: in place, and through the cache as from a bucket."""

import io
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from infd import storage
from infd.config import CropConfig, IngestConfig, LoaderConfig
from infd.data import loader
from infd.data.loader import Batch, Loader
from infd.data.order import Order, Sample, slots_of, validation_samples
from infd.data.snapshot import Dataset, open_dataset, write_dataset
from infd.errors import ConfigError, DatasetError

CROP = CropConfig(patch_px=24, lowres_px=32, r_min=24, r_max=64, view="random")
INGEST = IngestConfig(tile_px=64, min_side_px=32, shard_bytes=25_000, val_fraction=0.3)


def photo_bytes(seed: int) -> bytes:
    """A PNG of noise, 48 to 80 pixels a side."""
    rng = np.random.default_rng(seed)
    height, width = rng.integers(48, 80, 2)
    buffer = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> str:
    uri = str(tmp_path_factory.mktemp("data") / "noise")
    write_dataset(((f"photo-{i}.png", photo_bytes(i)) for i in range(30)), uri, INGEST)
    return uri


@pytest.fixture
def dataset(root: str) -> Dataset:
    return open_dataset(root)


@pytest.fixture(params=["local", "remote"])
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways to a shard: mapped in place, and fetched to the cache (from a folder that counts as a bucket)."""
    if request.param == "remote":
        monkeypatch.setattr(loader, "storage", SimpleNamespace(is_remote=lambda uri: True))
    return request.param


def order_of(dataset: Dataset, *, batch: int = 4, seed: int = 0, crop: CropConfig = CROP) -> Order:
    return Order(dataset.manifest, crop, batch=batch, seed=seed)


def take(dataset: Dataset, count: int, *, start: int = 0, slots: range = range(4), **config: int) -> list[Batch]:
    with Loader(dataset, order_of(dataset), LoaderConfig(**config), slots=slots, start_step=start) as batches:
        return [next(batches) for _ in range(count)]


def assert_same(ours: Batch, theirs: Batch) -> None:
    assert (ours.step, ours.rows) == (theirs.step, theirs.rows)
    for name in ("g", "lowres", "patch", "r", "y", "x"):
        torch.testing.assert_close(getattr(ours, name), getattr(theirs, name), rtol=0, atol=0)


def workers() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("infd-")]


@pytest.fixture(autouse=True)
def nothing_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """After every test: no thread and no temporary file of ours."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    yield
    assert workers() == []
    assert os.listdir(folder) == []


def test_law_the_dataset_has_several_shards(dataset: Dataset) -> None:
    assert len(dataset.manifest.shards) >= 5
    assert 1 <= int(dataset.manifest.split.sum()) < len(dataset) - 4


def test_ref_batches_are_what_the_dataset_reads(dataset: Dataset, place: str) -> None:
    order = order_of(dataset)
    for step, batch in enumerate(take(dataset, 12)):
        samples = order.batch(step)
        assert batch.step == step
        assert batch.rows == [s.row for s in samples]
        assert (batch.lowres.dtype, batch.lowres.shape) == (torch.uint8, (4, 3, 32, 32))
        assert (batch.patch.dtype, batch.patch.shape) == (torch.uint8, (4, 3, 24, 24))
        for i, s in enumerate(samples):
            assert [batch.g[i], batch.r[i], batch.y[i], batch.x[i]] == [s.g, s.r, s.y, s.x]
            view = dataset.view(s.row, s.view_offset)
            patch = dataset.patch(s.row, r=s.r, y=s.y, x=s.x, size=24, view=view)
            assert np.array_equal(batch.patch[i].permute(1, 2, 0), patch)
            assert np.array_equal(batch.lowres[i].permute(1, 2, 0), dataset.lowres(s.row, size=32, view=view))


@pytest.mark.parametrize(("room", "slots", "warned"), [(1.0, 4, False), (0.9, 4, True), (0.3, 4, True), (0.6, 1, False)])
def test_law_a_cache_too_small_for_the_slots_is_told(dataset, place, caplog, room, slots, warned) -> None:
    """Seven shards, four slots: together they choose among all of them, one alone among a quarter and a bit."""
    room_bytes = int(room * sum(shard.bytes for shard in dataset.manifest.shards))
    Loader(dataset, order_of(dataset), LoaderConfig(cache_bytes=room_bytes), slots=range(slots)).close()
    said = [record.getMessage() for record in caplog.records if record.name == "infd.data.loader"]
    assert len(said) == (place == "remote" and warned)
    for text in said:
        assert text.startswith(f"loader.cache_bytes={room_bytes}: {slots} slots read from up to ")
        assert "set loader.cache_bytes=" in text


def test_ref_centred_views_use_the_stored_lowres(dataset: Dataset) -> None:
    with Loader(dataset, order_of(dataset, crop=replace(CROP, view="center")), LoaderConfig(), slots=range(4)) as batches:
        batch = next(batches)
    for i, row in enumerate(batch.rows):
        assert np.array_equal(batch.lowres[i].permute(1, 2, 0), dataset.lowres(row, size=32))


@pytest.mark.slow
def test_law_threads_and_prefetch_change_nothing(dataset: Dataset, place: str) -> None:
    one = take(dataset, 20, threads=1, prefetch_batches=1)
    for threads, prefetch in ((4, 1), (2, 7)):
        for a, b in zip(one, take(dataset, 20, threads=threads, prefetch_batches=prefetch), strict=True):
            assert_same(a, b)


@pytest.mark.slow
def test_law_a_bucket_gives_the_same_batches(dataset: Dataset, bucket: str) -> None:
    there = storage.join(bucket, "noise")
    for info in storage.list_objects(dataset.uri):
        storage.put_file(there + info.uri.removeprefix(dataset.uri), info.uri)
    whole = max(shard.bytes for shard in dataset.manifest.shards)
    for cache_bytes in (1 << 30, 2 * whole):  # all shards at hand; a cache that must evict
        for a, b in zip(take(dataset, 12), take(open_dataset(there), 12, cache_bytes=cache_bytes), strict=True):
            assert_same(a, b)


@pytest.mark.parametrize("world", [2, 4])
def test_law_parts_of_the_workers_are_the_global_batch(dataset: Dataset, world: int) -> None:
    parts = [take(dataset, 6, slots=slots_of(rank=rank, world=world, batch=4)) for rank in range(world)]
    for step, whole in enumerate(take(dataset, 6)):
        joined = torch.cat([part[step].patch for part in parts])
        torch.testing.assert_close(joined, whole.patch, rtol=0, atol=0)
        assert [row for part in parts for row in part[step].rows] == whole.rows
        assert {part[step].step for part in parts} == {step}


def test_law_resumed_at_a_step_gives_the_same_batches(dataset: Dataset, place: str) -> None:
    whole = take(dataset, 15)
    for start in (1, 7, 11):
        for a, b in zip(whole[start:], take(dataset, 15 - start, start=start), strict=True):
            assert_same(a, b)


def test_law_read_gives_the_batch_again_while_iterating(dataset: Dataset, place: str) -> None:
    order = order_of(dataset)
    with Loader(dataset, order, LoaderConfig(), slots=range(4)) as batches:
        for _ in range(3):
            batch = next(batches)
            assert_same(batches.read(order.batch(batch.step)), batch)


def test_law_read_takes_validation_samples(dataset: Dataset) -> None:
    samples = validation_samples(dataset.manifest, CROP, 7, 0)
    with Loader(dataset, order_of(dataset), LoaderConfig(), slots=range(4)) as batches:
        batch = batches.read(samples)
    assert batch.patch.shape == (7, 3, 24, 24)
    assert all(dataset.manifest.split[row] == 1 for row in batch.rows)


def test_law_read_alone_fetches_only_what_it_reads(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "storage", SimpleNamespace(is_remote=lambda uri: True))
    samples = validation_samples(dataset.manifest, CROP, 2, 0)
    with Loader(dataset, order_of(dataset), LoaderConfig(), slots=range(1)) as batches:
        batches.read(samples)
        fetched = batches.stats()["fetched_bytes"]
    read = {dataset.shard_of(sample.row)[0] for sample in samples}
    assert fetched == sum(dataset.manifest.shards[shard].bytes for shard in read)
    assert len(read) < len(dataset.manifest.shards)


def test_law_no_more_is_made_than_the_bound_of_prefetch(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[int] = []
    real = Order.batch

    def batch(self: Order, step: int, slots: range | None = None) -> list:
        begun.append(step)
        return real(self, step, slots)

    monkeypatch.setattr(Order, "batch", batch)
    with Loader(dataset, order_of(dataset), LoaderConfig(prefetch_batches=3), slots=range(4)) as batches:
        assert begun == []
        for step in range(5):
            next(batches)
            assert begun == list(range(step + 3))


def test_law_figures(dataset: Dataset, place: str) -> None:
    with Loader(dataset, order_of(dataset), LoaderConfig(), slots=range(4)) as batches:
        assert batches.stats()["wait_fraction"] == 0
        for n in range(1, 8):
            next(batches)
            stats = batches.stats()
            assert (stats["batches"], stats["samples"]) == (n, 4 * n)
            assert 0 < stats["wait_fraction"] <= 1
            assert stats["wait_s"] <= stats["total_s"]
            assert stats["decode_s"] > 0
            assert 0 <= stats["hit_rate"] <= 1
            assert (stats["fetched_bytes"] > 0) == (place == "remote")


def test_law_waiting_ends_with_the_call(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([10.0, 13.0, 20.0, 21.0])  # called, returned, called, returned
    with Loader(dataset, order_of(dataset), LoaderConfig(), slots=range(4)) as batches:
        monkeypatch.setattr(Loader, "_fill", lambda *_: None)
        monkeypatch.setattr(loader.time, "perf_counter", lambda: next(clock))
        next(batches)
        next(batches)
        stats = batches.stats()
    assert stats["wait_s"] == 4.0
    assert stats["total_s"] == 11.0
    assert stats["wait_fraction"] == pytest.approx(4 / 11)


def test_law_flips_mirror_the_view_and_change_nothing_else(dataset: Dataset, place: str) -> None:
    """patch (y, x) of the mirrored view; coordinates count in it, as lowres shows it."""
    with Loader(dataset, order_of(dataset, crop=replace(CROP, flip=True)), LoaderConfig(), slots=range(4)) as batches:
        flipped = [next(batches) for _ in range(8)]
    samples = [s for step in range(8) for s in order_of(dataset, crop=replace(CROP, flip=True)).batch(step)]
    assert {s.flip for s in samples} == {True, False}
    for batch, plain in zip(flipped, take(dataset, 8), strict=True):
        assert (batch.rows, batch.r.tolist(), batch.y.tolist(), batch.x.tolist()) == (
            plain.rows, plain.r.tolist(), plain.y.tolist(), plain.x.tolist())
        for i in range(4):
            s = samples[4 * batch.step + i]
            if not s.flip:
                assert torch.equal(batch.patch[i], plain.patch[i]) and torch.equal(batch.lowres[i], plain.lowres[i])
                continue
            assert torch.equal(batch.lowres[i], plain.lowres[i].flip(-1))
            whole = dataset.patch(s.row, r=s.r, y=0, x=0, size=s.r, view=dataset.view(s.row, s.view_offset))[:, ::-1]
            theirs = torch.from_numpy(whole[s.y:s.y + 24, s.x:s.x + 24].copy()).permute(2, 0, 1)
            assert (batch.patch[i].int() - theirs.int()).abs().max() <= 1  # one tile read or several: rounding


# ---------------------------------------------------------------- the end


PROGRAM = """
import sys, types
from infd.config import CropConfig, LoaderConfig
from infd.data import loader
from infd.data.order import Order
from infd.data.snapshot import open_dataset
loader.storage = types.SimpleNamespace(is_remote=lambda uri: True)
dataset = open_dataset(sys.argv[1])
order = Order(dataset.manifest, CropConfig(patch_px=24, lowres_px=32, r_min=24, r_max=64), batch=4, seed=0)
with loader.Loader(dataset, order, LoaderConfig(), slots=range(4)) as batches:
    for batch in batches:
        print(batch.step, flush=True)
"""


@pytest.mark.slow
def test_law_ctrl_c_ends_a_program_and_leaves_no_file(root: str, tmp_path: Path) -> None:
    place = tmp_path / "its own"
    place.mkdir()
    program = subprocess.Popen([sys.executable, "-c", PROGRAM, root], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               text=True, env={**os.environ, "TMPDIR": str(place)}, cwd=Path(__file__).parents[2])
    assert program.stdout is not None
    while program.stdout.readline() != "5\n":
        assert program.poll() is None
    assert [name[:12] for name in os.listdir(place)] == ["infd-shards-"]
    program.send_signal(signal.SIGINT)
    _, err = program.communicate(timeout=120)
    assert err.rstrip().endswith("KeyboardInterrupt")
    assert os.listdir(place) == []


def test_law_close_leaves_nothing(dataset: Dataset, place: str) -> None:
    batches = Loader(dataset, order_of(dataset), LoaderConfig(threads=3), slots=range(4))
    next(batches)
    assert any(name.startswith("infd-loader") for name in workers())
    assert any(name.startswith("infd-fetch") for name in workers()) == (place == "remote")
    batches.close()
    batches.close()
    assert workers() == []
    with pytest.raises(ValueError, match="it is closed"):
        next(batches)
    with pytest.raises(ValueError, match="it is closed"):
        batches.read([])
    assert dataset.lowres(0, size=32).shape == (32, 32, 3)  # the caller's dataset still reads


def test_law_close_does_not_read_what_has_not_begun(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[int] = []
    go_on, cancelled = threading.Event(), threading.Event()

    def fill(self: Loader, batch: Batch, at: int, sample: Sample) -> None:
        begun.append(sample.g)
        assert sample.g < 4 or go_on.wait(30)  # step 0 is quick, the rest waits

    monkeypatch.setattr(Loader, "_fill", fill)
    batches = Loader(dataset, order_of(dataset), LoaderConfig(threads=1), slots=range(4))
    next(batches)
    batches._pending[-1][1][-1].add_done_callback(lambda _: cancelled.set())
    closing = threading.Thread(target=batches.close)
    closing.start()
    assert cancelled.wait(30)
    go_on.set()
    closing.join()
    assert begun in ([0, 1, 2, 3], [0, 1, 2, 3, 4])


def test_law_interrupt_closes(dataset: Dataset, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    batches = Loader(dataset, order_of(dataset), LoaderConfig(), slots=range(4))
    next(batches)

    def interrupted(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(loader.Future, "result", interrupted)
    with pytest.raises(KeyboardInterrupt):
        next(batches)
    assert workers() == []


# ---------------------------------------------------------------- errors


def harmed(tmp_path: Path, harm: Callable[[bytes], bytes]) -> tuple[Dataset, int]:
    """A dataset whose sample g = 5 lies in a shard whose file was changed; and that sample's row."""
    uri = str(tmp_path / "harmed")
    dataset = write_dataset(((f"photo-{i}.png", photo_bytes(i)) for i in range(12)), uri, INGEST)
    row = order_of(dataset).sample(5).row
    path = Path(storage.local_path(dataset.shard_uri(dataset.manifest.shards[dataset.shard_of(row)[0]])))
    path.write_bytes(harm(path.read_bytes()))
    return open_dataset(uri), row


@pytest.mark.parametrize("harm", [lambda data: data[:-9], lambda data: bytes(len(data))])
def test_error_damaged_shard_names_sample_and_shard(
    tmp_path: Path, place: str, harm: Callable[[bytes], bytes]
) -> None:
    dataset, row = harmed(tmp_path, harm)
    shard, inside = dataset.shard_of(row)
    batches = Loader(dataset, order_of(dataset), LoaderConfig(), slots=range(1, 2), start_step=1)
    with pytest.raises(DatasetError) as caught:
        next(batches)
    message = str(caught.value)
    assert message.startswith(f"sample g=5: shard {dataset.manifest.shards[shard].sha256}.arrow row {inside}")
    assert caught.value.__cause__ is not None
    assert workers() == []  # the loader closed itself


def test_error_in_a_thread_names_shard_row_and_uri(
    dataset: Dataset, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample = order_of(dataset).sample(10)  # step 2
    real = Dataset.patch

    def patch(self: Dataset, row: int, **kwargs: int) -> np.ndarray:
        if row == sample.row and kwargs["r"] == sample.r:
            raise RuntimeError("boom")
        return real(self, row, **kwargs)

    monkeypatch.setattr(Dataset, "patch", patch)
    shard, inside = dataset.shard_of(sample.row)
    with Loader(dataset, order_of(dataset), LoaderConfig(prefetch_batches=5), slots=range(4)) as batches:
        assert [next(batches).step for _ in range(2)] == [0, 1]  # what came before is delivered
        with pytest.raises(DatasetError) as caught:
            next(batches)
    assert str(caught.value) == (f"sample g=10: shard {dataset.manifest.shards[shard].sha256}.arrow row {inside} "
                                 f"({dataset[sample.row]['uri']}): boom")


@pytest.mark.parametrize("slots", [range(0), range(2, 6), range(0, 4, 2), range(-1, 2)])
def test_error_slots_outside_the_batch(dataset: Dataset, slots: range) -> None:
    with pytest.raises(ConfigError, match="slots=range"):
        Loader(dataset, order_of(dataset), LoaderConfig(), slots=slots)
