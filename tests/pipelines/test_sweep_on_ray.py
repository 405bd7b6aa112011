"""Whole sweeps on the local stack: killed and asked to stop, trials that fail and that are ended early, stage two."""

import json
import logging
import re
import shlex
import signal
import subprocess
import sys

import psutil
import pytest
from small_sweeps import STEPS, begun, encoded_latents, wish, write_photos
from stack import nothing_is_taken, until

from infd import checkpoint, storage
from infra.services import s3_client
from jobs import sweep as job
from jobs import train_ae
from pipelines import cluster, sweep, sweep_summary, sweep_trials, train


def processes(stack, *names: str) -> list[psutil.Process]:
    """Those of this stack's Ray whose title has one of `names`."""
    from infra.processes import MARKER

    mark = psutil.Process(stack.services["ray"].pid).environ()[MARKER]
    found = []
    for process in psutil.process_iter(["cmdline"]):
        try:
            if any(name in " ".join(process.info["cmdline"] or []) for name in names) and process.environ().get(MARKER) == mark:
                found.append(process)
        except psutil.Error:
            continue
    return found


TRAINING = ("ray::RayTrainWorker", "ray::TrainController", "ray::ImplicitFunc", "ray::trial_function", "ray::Board")


def command(dataset: str, uri: str, values: str) -> list[str]:
    loop = {"steps": STEPS, "log-every": 5, "checkpoint-every": 5, "validate-every": 10, "keep-every": 5, "validate-samples": 4,
            "preview-every": 1000, "preview-photos": 1, "preview-px": 128}
    return ["python", "jobs/sweep.py", "ae", "tiny", "--dataset", dataset, "--sweep", uri, "--device", "cpu",
            "--seeds", "0", "1", "--vary", f"loss.quantizer={values}", "--loss.lpips", "0", "--loss.gan", "0",
            "--crop.r-max", "256",
            *(word for name, value in loop.items() for word in (f"--loop.{name}", str(value)))]


def written(stack, uri: str) -> dict[str, object]:
    """Time of the last write of every object below `uri`, but for leases and what Ray keeps."""
    bucket, _, prefix = uri.removeprefix("s3://").partition("/")
    pages = s3_client(stack.env).get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=f"{prefix}/")
    entries = [entry for page in pages for entry in page.get("Contents", [])]
    return {entry["Key"].removeprefix(f"{prefix}/"): entry["LastModified"] for entry in entries
            if "/ray/" not in entry["Key"] and not entry["Key"].endswith("driver.json")}


def last(uri: str, number: int) -> int:
    """The newest step of a trial."""
    return checkpoint.pointed(f"{uri}/trials/{number:03d}", "last") or 0


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize(("values", "concurrent", "count", "number"), [
    ("1e-6", "1", 2, signal.SIGKILL), ("1e-6", "1", 2, signal.SIGTERM), ("1e-6,1e-4", "0", 4, signal.SIGINT)])
def test_job_an_ended_sweep_goes_on_and_ends_in_a_table(
        stack, bucket, tmp_path, capfd, caplog, monkeypatch, values, concurrent, count, number):
    """Two seeds. The driver alone is killed, or asked to stop, when a trial is over and another is on its way: all ends."""
    monkeypatch.setattr(job.logs, "to_stderr", lambda: caplog.set_level(logging.INFO))
    dataset, uri = write_photos(f"{bucket}/data"), f"{bucket}/sweep"
    words = [*command(dataset, uri, values), "--concurrent", concurrent]
    with (tmp_path / "stderr").open("w") as stderr:
        driver = subprocess.Popen([sys.executable, "-m", "jobs.sweep", *words[2:]], stderr=stderr)

    def midway() -> bool:
        steps = [last(uri, number) for number in range(count)]
        assert driver.poll() is None, "it has ended"
        return STEPS in steps and any(0 < step <= STEPS // 2 for step in steps)

    until(midway, limit_s=400, every_s=0.5)                          # the cores are for the trials
    driver.send_signal(number)
    code = driver.wait(120)
    until(lambda: not processes(stack, *TRAINING))
    leases = [info.uri for info in storage.list_objects(uri) if info.uri.endswith("/driver.json")]
    if number == signal.SIGKILL:
        assert code == -9
        for lease in leases:
            storage.delete(lease)                                    # stale; to wait for that is tested with leases
    else:
        assert not leases
        assert_ended(stack, uri, code, number, (tmp_path / "stderr").read_text())
    before = written(stack, uri)
    steps = {number: last(uri, number) for number in range(count)}
    assert not storage.exists(f"{uri}/sweep.json") and any(0 < step < STEPS for step in steps.values())

    capfd.readouterr()
    assert job.main(words[2:]) == 0
    out, log = capfd.readouterr().out, caplog.text
    assert re.search(r"loss.quantizer +seeds +mean val/loss +spread", out) and "best trial" in out
    assert f"report {uri}/report/report.html" in out and " ± " in storage.read_bytes(f"{uri}/report/report.html").decode()
    told = json.loads(storage.read_bytes(f"{uri}/sweep.json"))
    assert [trial["state"] for trial in told["trials"]] == ["finished"] * count
    assert [point["counted"] for point in told["points"]] == [2] * (count // 2)
    assert all(point["spread"] > 0 for point in told["points"])
    after = written(stack, uri)
    for number, step in steps.items():
        kept = [key for key in before if re.match(rf"trials/{number:03d}/checkpoints/step-", key)
                and key.endswith("complete.json") and int(re.findall(r"step-(\d+)", key)[0]) <= step]
        assert len(kept) == step // 5 and all(after[key] == before[key] for key in kept)        # none was trained again
        if step == STEPS:
            assert not re.search(rf"trial {number:03d} .*: started", log)
        elif step:
            assert re.search(rf"trial {number:03d} .*: started, going on from step {step}", log)
    assert_nested(uri, count)
    assert_nothing_is_left_to_do(uri, words, capfd)


def assert_ended(stack, uri: str, code: int, number: int, stderr: str) -> None:
    """As the docs have it: the exit code, what to do, no CPU still taken, and no run that MLflow shows as running."""
    from mlflow.tracking import MlflowClient

    assert code == 128 + number and "Traceback" not in stderr
    assert re.search(r"^sweep: .*the same command goes on", stderr, re.M)
    nothing_is_taken(stack)
    client = MlflowClient()
    records = [info.uri for info in storage.list_objects(uri) if info.uri.endswith("/mlflow.json")]
    states = {client.get_run(json.loads(storage.read_bytes(record))["run_id"]).info.status for record in records}
    assert len(records) > 2 and states == {"FINISHED", "FAILED"}


def assert_nested(uri: str, count: int) -> None:
    """One MLflow run of the sweep, finished, and below it one of each trial."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient()
    parent = client.get_run(json.loads(storage.read_bytes(f"{uri}/mlflow.json"))["run_id"])
    children = client.search_runs([parent.info.experiment_id], f"tags.mlflow.parentRunId = '{parent.info.run_id}'")
    assert {file.path for file in client.list_artifacts(parent.info.run_id)} == {"report.html", "sweep.md"}
    assert parent.data.tags["best_point"].startswith("loss.quantizer=") and parent.data.metrics["val/loss.spread"] > 0
    assert parent.info.status == "FINISHED" and {child.info.status for child in children} == {"FINISHED"}
    assert sorted(child.info.run_name for child in children) == [f"sweep-00{number}" for number in range(count)]
    assert {child.data.params["loop.seed"] for child in children} == {"0", "1"}


def assert_nothing_is_left_to_do(uri: str, words: list[str], capfd) -> None:
    """The same command once more needs no cluster; the command of a trial, run as printed, finds its run finished."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cluster, "connect", lambda *_, **__: pytest.fail("a cluster was asked for"))
        patch.setattr(sweep, "connect", lambda *_, **__: pytest.fail("a cluster was asked for"))
        patch.setattr(train_ae.logs, "to_stderr", lambda: None)
        assert job.main(words[2:]) == 0
        capfd.readouterr()
        assert job.main([*words[2:], "--show", "1"]) == 0
        by_hand = shlex.split(capfd.readouterr().out)
        assert by_hand[:2] == ["python", "jobs/train_ae.py"] and train_ae.main(by_hand[2:]) == 0
    assert capfd.readouterr().out.strip() == checkpoint.step_uri(f"{uri}/trials/001", STEPS)


@pytest.mark.slow
def test_a_trial_that_fails_and_one_that_is_ended_early_leave_nothing(stack, bucket):
    """One has ended well before; a rate at which nothing is learned, which ASHA ends; one that is not finite."""
    dataset, uri = write_photos(f"{bucket}/data"), f"{bucket}/sweep"
    asked = wish(dataset, uri, "optimizer.lr=2e-3,1e-12,1e30", seeds=(0,), scheduler="asha", reduction=2,
                 loop={"steps": 40, "checkpoint_every": 10})
    good = sweep.planned(asked)[0].listed()[0]
    begun(good, **{"val/loss": 0.01})
    sweep_trials.remember(good, 10, 0.02)
    with cluster.connect(env=train.worker_env()):
        found = sweep.run_sweep(asked)
        until(lambda: not processes(stack, *TRAINING))
        nothing_is_taken(stack)                                      # while the job that had them goes on
    assert [fate.state for fate in found.fates] == ["finished", "stopped", "failed"]
    assert 10 <= found.fates[1].step < 40 and "a loss or a weight is not finite" in found.fates[2].error
    assert "a loss or a weight is not finite" in sweep_summary.text(found) and found.best_trial.trial.number == 0
    assert sweep_trials.history(found.fates[1].trial)[0][0] == 10
    assert not [info.uri for info in storage.list_objects(f"{uri}/ray")]


@pytest.mark.slow
@pytest.mark.long
def test_job_a_sweep_of_stage_two(stack, bucket, capfd, monkeypatch):
    """Over the objective, of which the loss is made: best is told within each, over the rate and the seeds."""
    monkeypatch.setattr(job.logs, "to_stderr", lambda: None)
    dataset, uri = write_photos(f"{bucket}/data"), f"{bucket}/sweep"
    latents = encoded_latents(dataset, f"{bucket}/autoencoder", f"{bucket}/latents")
    loop = {"steps": 8, "log-every": 2, "checkpoint-every": 4, "validate-every": 4, "validate-samples": 4,
            "preview-every": 1000}
    assert job.main(["ldm", "tiny", "--latents", latents, "--sweep", uri, "--device", "cpu", "--seeds", "0", "1",
                     "--vary", "diffusion.objective=eps,flow",
                     *(word for name, value in loop.items() for word in (f"--loop.{name}", str(value)))]) == 0
    out, told = capfd.readouterr().out, json.loads(storage.read_bytes(f"{uri}/sweep.json"))
    assert [trial["state"] for trial in told["trials"]] == ["finished"] * 4 and all(point["spread"] for point in told["points"])
    assert told["best_trial"] is None and [one["values"] for one in told["conditions"]] == [
        {"diffusion.objective": "eps"}, {"diffusion.objective": "flow"}]
    assert "mind: trials do not all compare by val/loss, which depends on diffusion.objective" in out
    assert re.search(r"^best trial 00[23] with diffusion.objective=flow: s3://", out, re.M)
    trained = checkpoint.load(told["trials"][3]["checkpoint"])
    assert trained.meta["config"]["diffusion.objective"] == "flow" and trained.meta["latents"]["address"] == latents
    page = storage.read_bytes(f"{uri}/report/report.html").decode()
    assert "diffusion.objective" in page and "Trials do not all compare by val/loss" in page


@pytest.mark.slow
@pytest.mark.long
def test_job_optuna_and_asha_search_a_range(stack, bucket, tmp_path, capfd, monkeypatch):
    """Six points, one seed, two at once; the driver is killed on the way, and the same command ends with six."""
    monkeypatch.setattr(job.logs, "to_stderr", lambda: None)
    dataset, uri = write_photos(f"{bucket}/data"), f"{bucket}/sweep"
    words = [*command(dataset, uri, "1e-7..1e-3")[2:], "--loop.validate-every", "5", "--search", "optuna", "--samples", "6",
             "--scheduler", "asha", "--grace-steps", "5", "--reduction", "2"]
    words[words.index("--seeds") + 1:words.index("--vary")] = ["0"]
    with (tmp_path / "stderr").open("w") as stderr:
        driver = subprocess.Popen([sys.executable, "-m", "jobs.sweep", *words], stderr=stderr)
    until(lambda: driver.poll() is not None or last(uri, 1) == STEPS or last(uri, 2) > 0, limit_s=400, every_s=0.5)
    assert driver.poll() is None, (tmp_path / "stderr").read_text()
    driver.kill()
    driver.wait(60)
    until(lambda: not processes(stack, *TRAINING))
    for info in storage.list_objects(uri):
        if info.uri.endswith("/driver.json"):
            storage.delete(info.uri)                                 # stale; to wait for that is tested with leases
    assert job.main(words) == 0
    told = json.loads(storage.read_bytes(f"{uri}/sweep.json"))
    values = [trial["values"]["loss.quantizer"] for trial in told["trials"]]
    assert len(set(values)) == 6 and all(1e-7 <= value <= 1e-3 for value in values)
    assert {trial["state"] for trial in told["trials"]} <= {"finished", "stopped"}
    assert told["trials"][told["best_trial"]]["state"] == "finished" and "best trial" in capfd.readouterr().out
