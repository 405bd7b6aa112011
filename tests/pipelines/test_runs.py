"""`jobs/runs.py`: what a run's folder tells of it, on a disk, without MLflow."""

import dataclasses
import json
from pathlib import Path

import pytest
from pictures import encoded, picture

from infd import checkpoint, storage
from infd.config import IngestConfig
from infd.config_form import flat
from infd.data.snapshot import write_dataset
from infd.lease import driver_uri, held
from infd.presets import tiny
from jobs import runs as job
from pipelines import runs

STEPS = 60
WATCH_S = 0.1
"""So little that only a driver that beats faster than POLL_S shows itself."""


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(runs, "POLL_S", 0.05)


def begun(uri: str) -> str:
    config = dataclasses.replace(tiny(), loop=dataclasses.replace(tiny().loop, steps=STEPS))
    record = {"preset": "tiny", "config": flat(config), "snapshot": "s3://b/datasets/mine@3", "start": None}
    storage.put_atomic(f"{uri}/run.json", json.dumps(record).encode())
    return uri


def saved(uri: str, *steps: int, best: int | None = None, loss: float | None = 0.25, of: int = STEPS) -> str:
    """A run with checkpoints that hold no weights."""
    config = flat(tiny()) | {"loop.steps": of}
    metrics = {"train/loss": 0.5, "train/psnr": 20.0}
    if loss is not None:
        metrics |= {"val/loss": loss, "val/psnr": 18.5, "val/loss_r_to_64": 0.2, "val/loss_r_to_128": 0.3,
                    "val/psnr_r_to_64": 19.0}
    for step in steps:
        meta = {"step": step, "config": config, "metrics": metrics}
        checkpoint.save(checkpoint.step_uri(uri, step), model={}, train_state={}, meta=meta)
        checkpoint.point(uri, "last", step)
    checkpoint.point(uri, "best", best or steps[-1])
    return uri


def states(folder: str) -> dict[str, str]:
    """State of each run by its name in the list."""
    lines = runs.list_text(folder, watch_s=WATCH_S).splitlines()[2:]
    at = runs.list_text(folder, watch_s=WATCH_S).splitlines()[1].index("state")
    return {line.split()[0]: line[at:at + 11].strip() for line in lines}


def test_job_list_is_a_table_of_all_runs(tmp_path, capsys):
    training = f"{tmp_path}/data/training"
    saved(begun(f"{training}/tiny-1"), 30, STEPS, best=30)
    saved(begun(f"{training}/tiny-22"), 30, loss=None)
    begun(f"{training}/tiny-333")
    assert job.main(["list", f"{tmp_path}/data@3", "--watch-s", "0"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        training,
        "run       state         step                   best  preset  snapshot",
        "tiny-1    finished     60/60  val/loss 0.2500 at 30  tiny    mine@3",
        "tiny-22   interrupted  30/60                      -  tiny    mine@3",
        "tiny-333  not begun     0/60                      -  tiny    mine@3"]


def test_job_show_tells_all_of_a_run(tmp_path, capsys):
    run = saved(begun(f"{tmp_path}/run"), 30, 45, best=30)
    storage.put_atomic(f"{run}/mlflow.json", b'{"run_id": "abc"}')
    for step in (10, 20):
        storage.put_atomic(f"{run}/previews/step-{step:08d}.png", b"")
    assert job.main(["show", run, "--watch-s", "0"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"run           {run}",
        "state         interrupted: short of its last step, and no driver; the same command goes on",
        "step          45 of 60",
        "preset        tiny",
        "snapshot      s3://b/datasets/mine@3",
        "started from  random weights, seed 0",
        "best          step 30: val/loss 0.25, val/psnr 18.5",
        "last          train/loss 0.5, train/psnr 20",
        f"checkpoints   {run}/checkpoints: steps 30 (best), 45 (last)",
        f"preview       {run}/previews/step-00000020.png",
        "MLflow run    abc",
        "",
        "validation of the best by side r, pixels",
        "          val/loss  val/psnr",
        " r to 64       0.2        19",
        "r to 128       0.3         -"]


def test_a_run_is_running_while_its_driver_gives_signs_of_life(tmp_path):
    alive, dead = begun(f"{tmp_path}/alive"), begun(f"{tmp_path}/dead")
    saved(alive, STEPS)                                            # it has been given more steps, and has saved none of them
    storage.put_atomic(f"{dead}/driver.json", b'{"holder": "a process that was killed"}')
    with held(driver_uri(alive), what="the test", beat_s=0.01):
        assert runs.living([alive, dead], watch_s=1.0) == {alive}
        assert runs.facts(alive, alive=True).state == "running"
    assert runs.living([alive], watch_s=60) == set()               # nobody holds it: no watching
    assert states(str(tmp_path)) == {"alive": "finished", "dead": "interrupted"}


def test_law_a_lease_that_is_given_back_is_not_watched_further(tmp_path, monkeypatch):
    run = begun(f"{tmp_path}/run")
    storage.put_atomic(driver_uri(run), b"{}")
    monkeypatch.setattr(runs.time, "sleep", lambda seconds: storage.delete(driver_uri(run)))
    assert runs.living([run], watch_s=600) == set()


def test_runs_are_found_below_a_dataset_and_below_any_folder(tmp_path):
    inside, outside = begun(f"{tmp_path}/a/data/training/one"), begun(f"{tmp_path}/b/two")
    saved(inside, 30)
    assert runs.found(f"{tmp_path}/a/data") == [inside] and runs.found(str(tmp_path)) == [inside, outside]
    assert list(states(str(tmp_path))) == ["a/data/training/one", "b/two"]
    assert runs.list_text(str(tmp_path), watch_s=0).splitlines()[0] == str(tmp_path)


def test_the_steps_of_a_run_are_those_of_its_last_checkpoint(tmp_path):
    run = saved(begun(f"{tmp_path}/run"), STEPS, of=2 * STEPS)
    seen = runs.facts(run, alive=False)
    assert (seen.state, seen.step, seen.steps) == ("interrupted", STEPS, 2 * STEPS)


def test_error_no_run_is_one_line(tmp_path, capsys):
    assert job.main(["list", str(tmp_path)]) == 1
    assert job.main(["show", str(tmp_path)]) == 1
    (tmp_path / "run.json").write_text('{"plan": 1}')
    assert job.main(["show", str(tmp_path)]) == 1
    first, second, third = capsys.readouterr().err.splitlines()
    assert first.startswith(f"runs: {tmp_path}: no run.json below it; expected a dataset or a folder with training runs; ")
    assert second.startswith(f"runs: run {tmp_path}: no run.json; expected the folder of a training run; ")
    assert third.startswith(f"runs: run {tmp_path}: run.json is not what jobs/train_ae.py writes; ")


def test_error_a_damaged_run_leaves_the_others_in_the_list(tmp_path, caplog):
    saved(begun(f"{tmp_path}/good"), 30)
    broken = saved(begun(f"{tmp_path}/broken"), 30)
    (Path(checkpoint.step_uri(broken, 30)) / checkpoint.META).write_text("{}")
    (Path(begun(f"{tmp_path}/foreign")) / "run.json").write_text("[]")
    assert states(str(tmp_path)) == {"broken": "unreadable", "foreign": "unreadable", "good": "interrupted"}
    assert f"{broken}/checkpoints/step-00000030" in caplog.text and f"run {tmp_path}/foreign: run.json is not" in caplog.text


def test_a_dataset_without_runs_says_so(tmp_path, capsys):
    write_dataset([("a.png", encoded(picture(80, 70)))], str(tmp_path / "ds"), IngestConfig(min_side_px=64, val_fraction=0))
    assert job.main(["list", str(tmp_path / "ds")]) == 0
    assert capsys.readouterr().out == f"{tmp_path}/ds: no training runs yet; jobs/train_ae.py begins one\n"
