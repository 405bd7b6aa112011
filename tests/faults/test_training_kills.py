"""Training whose processes are killed by SIGKILL at random moments, and checkpoints whose writes fail."""

import dataclasses
import os
import random
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from crashes import finished_within
from faults.proxy import Faults
from pictures import encoded, picture

from infd import checkpoint, s3, storage
from infd.config import AutoencoderTrainingConfig, DiscriminatorConfig, IngestConfig, LossConfig
from infd.data.snapshot import write_dataset
from infd.errors import StorageError
from infd.presets import tiny
from infd.training import run as run_module
from infd.training.autoencoder_run import run_autoencoder
from infd.training.loop import Metrics
from infd.training.run import open_run
from infd.training.world import World

ROOT = Path(__file__).resolve().parents[2]
STEPS, SHORT, KILLS = 24, 6, 10

CHILD = """
import os, random, signal, sys, threading
sys.path[:0] = ["tests", "tests/faults"]
import torch
import test_training_kills as case
from infd.training import world
run, dataset, victim, step, delay_s = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), float(sys.argv[5])
torch.set_num_threads(1)
here, seen = world.join("cpu"), 0
def wished():
    "Asked once a step: where the victim's step has come, a timer kills it, wherever it is by then."
    global seen
    seen += 1
    if here.rank == victim and seen == step:
        threading.Timer(delay_s, os.kill, (os.getpid(), signal.SIGKILL)).start()
    return False
case.train(run, dataset, here, wished)
here.leave()
"""


class Silent:
    """An observer that keeps nothing."""

    def log(self, step: int, metrics: Metrics) -> None: ...
    def picture(self, step: int, name: str, image: object) -> None: ...
    def checkpointed(self, step: int, uri: str, metrics: Metrics) -> None: ...
    def alarm(self, step: int, alarm: object) -> None: ...


def config(steps: int) -> AutoencoderTrainingConfig:
    base = tiny()
    loop = dataclasses.replace(base.loop, steps=steps, batch=2, log_every=1, checkpoint_every=3, validate_every=6,
                               keep_every=12, validate_samples=2, preview_every=steps, preview_photos=1, preview_px=64)
    return dataclasses.replace(
        base, loop=loop, crop=dataclasses.replace(base.crop, lowres_px=32, patch_px=32, r_min=32, r_max=96),
        discriminator=DiscriminatorConfig(base_dim=8, layers=2), loss=LossConfig(lpips=0, quantizer=1e-6, gan_from_step=4))


def train(
    uri: str, dataset: str, world: World, wished: Callable[[], bool] = lambda: False, *, steps: int = STEPS,
) -> None:
    run = open_run(uri, preset="tiny", config=config(steps), dataset=dataset)
    run_autoencoder(run, world=world, observer=Silent(), wished=wished)


def ends(run: str, steps: int = STEPS) -> dict[str, dict[str, object]]:
    """Hashes of the last checkpoint's tensors."""
    last = checkpoint.load(f"{run}/checkpoints/last")
    assert last.step == steps
    return {name: last.files[name] for name in (checkpoint.MODEL, checkpoint.TRAIN_STATE)}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> str:
    root = str(tmp_path_factory.mktemp("dataset"))
    sources = [(f"photo-{seed}.png", encoded(picture(140, 130, seed))) for seed in range(10)]
    write_dataset(sources, root, IngestConfig(val_fraction=0.3, min_side_px=64))
    return root


def launched(run: str, dataset: str, workers: int, *, victim: int = -1, step: int = 0, delay_s: float = 0) -> list[int]:
    """Exit codes of the group's processes; those left alone by a victim are ended too, as Ray and torchrun do."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    group = [subprocess.Popen(
        [sys.executable, "-c", CHILD, run, dataset, str(victim), str(step), str(delay_s)], cwd=ROOT, stderr=subprocess.PIPE,
        env=os.environ | ({"RANK": str(rank), "WORLD_SIZE": str(workers), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
                          if workers > 1 else {})) for rank in range(workers)]
    try:
        if victim >= 0:
            group[victim].wait(timeout=300)
            for process in group:
                process.kill()
        said = [process.communicate(timeout=300)[1].decode() for process in group]
    finally:
        for process in group:
            process.kill()
            process.wait()
    codes = [process.returncode for process in group]
    assert all(code in (0, -signal.SIGKILL) for code in codes) or victim >= 0, "\n".join(said)
    return codes


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("workers", [1, 2])
def test_law_ten_kills_at_random_steps_end_in_the_same_bytes(dataset, tmp_path, workers):
    whole, chance = str(tmp_path / "whole"), random.Random(workers)
    assert launched(whole, dataset, workers) == [0] * workers
    for number in range(KILLS):
        run, victim, step = str(tmp_path / f"killed-{number}"), chance.randrange(workers), chance.randrange(1, STEPS)
        codes = launched(run, dataset, workers, victim=victim, step=step, delay_s=chance.uniform(0, 0.3))
        assert codes[victim] == -signal.SIGKILL
        newest = checkpoint.newest(run)
        print(f"rank {victim} killed in step {step} or after; goes on from {newest.step if newest else 0}")
        assert launched(run, dataset, workers) == [0] * workers
        assert ends(run) == ends(whole)


@pytest.mark.slow
def test_law_a_run_that_dies_before_any_write_of_a_checkpoint_ends_the_same(dataset, tmp_path):
    """A crash before each write in turn, of checkpoints, pointers and removals; what is then there is whole."""
    whole, last, writes, finished = str(tmp_path / "whole"), 0, 0, False
    train(whole, dataset, World(), steps=SHORT)
    while not finished:
        run = str(tmp_path / f"cut-{writes}")
        finished = finished_within(writes, lambda run=run: train(run, dataset, World(), steps=SHORT))
        newest = checkpoint.newest(run)
        step = newest.step if newest else 0
        assert step >= last and step % 3 == 0
        if newest:
            assert newest.model() and newest.train_state()         # every hash is checked
        train(run, dataset, World(), steps=SHORT)
        assert ends(run, SHORT) == ends(whole, SHORT)
        last, writes = step, writes + 1
    assert last == SHORT and writes > 12


# ---------------------------------------------------------------- writes that fail


@pytest.fixture
def small_disk(monkeypatch) -> Iterator[Callable[[int], None]]:
    """`small_disk(bytes)`: the kernel refuses files that are longer, as a full disk does; no wait between tries."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    monkeypatch.setattr(run_module, "SAVE_WAIT_S", 0)
    yield lambda limit: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.slow
def test_error_a_full_disk_ends_the_run_in_one_line_and_harms_no_checkpoint(dataset, tmp_path, small_disk, caplog):
    run = str(tmp_path / "run")
    train(run, dataset, World(), steps=3)
    before = ends(run, 3)
    small_disk(10_000)
    with pytest.raises(StorageError, match="checkpoint of step 6: not written in 4 tries; the one before is whole; make room"):
        train(run, dataset, World(), steps=6)
    assert ends(run, 3) == before and caplog.text.count("tried again in 0 s") == 3
    small_disk(resource.RLIM_INFINITY)
    train(run, dataset, World(), steps=6)
    train(str(tmp_path / "whole"), dataset, World(), steps=6)
    assert ends(run, 6) == ends(str(tmp_path / "whole"), 6)


@pytest.mark.slow
def test_law_a_disk_that_someone_clears_in_time_costs_nothing(dataset, tmp_path, small_disk, monkeypatch):
    run, waits = str(tmp_path / "run"), []

    def cleared(wait_s: float) -> None:
        waits.append(wait_s)
        small_disk(resource.RLIM_INFINITY)

    small_disk(10_000)
    monkeypatch.setattr(run_module.time, "sleep", cleared)
    train(run, dataset, World(), steps=3)
    assert waits == [0] and ends(run, 3)


@pytest.mark.slow
def test_law_a_store_that_goes_away_at_a_checkpoint_is_waited_for_then_named(dataset, bucket, through, tmp_path, monkeypatch):
    monkeypatch.setattr(run_module, "SAVE_WAIT_S", 0)
    monkeypatch.setattr(s3, "PATIENCE_S", 1.0)
    with through(Faults(0, 0.0)) as proxy:
        train(f"{bucket}/run", dataset, World(), steps=3)
        save = checkpoint.save

        def gone(*args: object, **named: object) -> None:
            proxy.stop()
            save(*args, **named)  # pyright: ignore

        monkeypatch.setattr(checkpoint, "save", gone)
        with pytest.raises(StorageError, match="the checkpoint of step 6: not written in 4 tries"):
            train(f"{bucket}/run", dataset, World(), steps=6)
    monkeypatch.setattr(checkpoint, "save", save)
    assert ends(f"{bucket}/run", 3)
    train(f"{bucket}/run", dataset, World(), steps=6)
    train(str(tmp_path / "whole"), dataset, World(), steps=6)
    assert ends(f"{bucket}/run", 6) == ends(str(tmp_path / "whole"), 6)


@pytest.mark.slow
def test_law_removals_that_fail_harm_no_checkpoint(dataset, tmp_path, monkeypatch, caplog):
    run = str(tmp_path / "run")

    def refused(uri: str) -> None:
        raise StorageError(f"{uri}: refused")

    monkeypatch.setattr(storage, "delete_prefix", refused)
    train(run, dataset, World(), steps=12)
    assert ends(run, 12) and "old checkpoints are not removed" in caplog.text


@pytest.mark.slow
def test_law_where_last_was_being_written_anew_the_newest_whole_one_counts(dataset, tmp_path):
    run = str(tmp_path / "run")
    train(run, dataset, World(), steps=6)
    Path(checkpoint.step_uri(run, 6), checkpoint.COMPLETE).unlink()
    newest = checkpoint.newest(run)
    assert newest is not None and newest.step == 3
    train(run, dataset, World(), steps=6)
    assert ends(run, 6)


STOPPED = """
import sys, time
sys.path[:0] = ["tests", "tests/faults"]
import torch
import test_training_kills as case
from infd import checkpoint
from infd.errors import Interrupted
from infd.training import world
torch.set_num_threads(1)
here, save = world.join("cpu"), checkpoint.save
def slow(*args, **named):
    time.sleep(5)
    save(*args, **named)
checkpoint.save = slow
try:
    case.train(sys.argv[1], sys.argv[2], here, lambda: here.rank == 1)
except Interrupted:
    whole = checkpoint.newest(sys.argv[1])
    print("left with", whole and whole.step, flush=True)
"""


@pytest.mark.slow
def test_law_no_rank_leaves_before_the_checkpoint_of_a_stop_is_whole(dataset, tmp_path):
    """Rank 1 is asked to stop; rank 0 takes five seconds to save."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    group = [subprocess.Popen([sys.executable, "-c", STOPPED, str(tmp_path / "run"), dataset], cwd=ROOT, text=True,
                              stdout=subprocess.PIPE, env=os.environ | {
                                  "RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port})
             for rank in range(2)]
    try:
        assert [process.communicate(timeout=300)[0] for process in group] == ["left with 1\n"] * 2
    finally:
        for process in group:
            process.kill()
            process.wait()


@pytest.mark.slow
def test_job_a_training_that_is_asked_to_stop_saves_and_goes_on(dataset, tmp_path):
    """By SIGTERM, then by Ctrl+C after it went on from the checkpoint of the first."""
    run = tmp_path / "run"
    words = [f"--{name.replace('_', '-')}={value}" for name, value in {
        "loop.steps": 100_000, "loop.batch": 2, "loop.log_every": 1, "loop.checkpoint_every": 50_000,
        "loop.validate_every": 50_000, "loop.preview_photos": 1, "loop.preview_px": 64, "crop.lowres_px": 32,
        "crop.patch_px": 32, "crop.r_min": 32, "crop.r_max": 96, "loss.lpips": 0, "loss.quantizer": 1e-6}.items()]
    command = [sys.executable, "jobs/train_ae.py", "tiny", "--no-ray", "--dataset", dataset, "--run", str(run), *words]
    steps = []
    for told, number, code in (("step 2/", signal.SIGTERM, 143), ("going on from step", signal.SIGINT, 130)):
        process = subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        try:
            assert process.stderr is not None
            lines: list[str] = []
            for line in process.stderr:
                lines.append(line)
                if told in line and process.poll() is None:
                    process.send_signal(number)
                    told = "nothing more"
        finally:
            process.kill()
            assert process.wait() == code, lines
        assert "asked to stop; the checkpoint is saved" in lines[-1] and "Traceback" not in "".join(lines)
        newest = checkpoint.newest(str(run))
        assert newest is not None
        steps.append(newest.step)
    assert 2 <= steps[0] < steps[1]
