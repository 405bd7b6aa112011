"""`ray job submit … jobs/train_ae.py` on the real stack: two workers, one of them killed, and a resumed job."""

import io
import json
import os
import re
import signal
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import psutil
import pytest
from PIL import Image
from stack import until as stack_until

from infd import checkpoint, storage
from infd.config import IngestConfig
from infd.data.snapshot import write_dataset
from infra import submit
from infra.processes import MARKER
from pipelines import runs

T = TypeVar("T")
LIMIT_S = 600
MANY, SOME = 80, 60
"""Steps of the job that is stopped and whose worker is killed, and of the one that gets SIGTERM."""
WORKER = "ray::RayTrainWorker"


def photo(seed: int) -> bytes:
    generator = np.random.default_rng(seed)
    coarse = Image.fromarray(generator.integers(0, 256, (6, 6, 3), dtype=np.uint8))
    buffer = io.BytesIO()
    coarse.resize((320, 280), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def command(dataset: str, run: str, *, steps: int) -> list[str]:
    return ["python", "jobs/train_ae.py", "tiny", "--dataset", dataset, "--run", run, "--workers", "2",
            "--loss.lpips", "0", "--loss.gan", "0.1", "--loss.gan-from-step", "10", "--crop.r-max", "256",
            "--loop.steps", str(steps), "--loop.log-every", "5", "--loop.checkpoint-every", "10",
            "--loop.keep-every", "1000", "--loop.validate-every", "20", "--loop.validate-samples", "4",
            "--loop.preview-every", "1000", "--loop.preview-photos", "1", "--loop.preview-px", "256"]


def workers(stack) -> list[psutil.Process]:
    """Train workers of this stack, by the marker that its head gave to all its descendants."""
    marker = [part.pid for name, part in stack.services.items() if name == "ray"][0]
    mark = psutil.Process(marker).environ()[MARKER]
    found = []
    for process in psutil.process_iter(["cmdline"]):
        try:
            if WORKER in " ".join(process.info["cmdline"] or []) and process.environ().get(MARKER) == mark:
                found.append(process)
        except psutil.Error:
            continue
    return found


def until(what: str, done: Callable[[], T]) -> T:
    return stack_until(done, LIMIT_S, what=what, every_s=0.5)


@pytest.mark.slow
def test_job_goes_on_after_it_was_stopped_and_after_a_killed_worker(stack, bucket, capfd):
    dataset, run = f"{bucket}/dataset", f"{bucket}/run"
    write_dataset([(f"photo-{seed}.jpg", photo(seed)) for seed in range(8)], dataset, IngestConfig(val_fraction=0.3))

    job, _ = submit.submit(command(dataset, run, steps=MANY), follow=False)
    client = submit.connect(stack)
    until("the first checkpoint", lambda: checkpoint.pointed(run, "last"))
    client.stop_job(job)
    submit.wait(client, job)
    stopped = checkpoint.pointed(run, "last") or 0
    assert 0 < stopped < MANY

    job, _ = submit.submit(command(dataset, run, steps=MANY), follow=False)
    until("a later checkpoint", lambda: (checkpoint.pointed(run, "last") or 0) > stopped)
    assert (checkpoint.pointed(run, "last") or 0) < MANY, "the job ended before a worker could be killed"
    os.kill(until("a worker", lambda: workers(stack))[0].pid, signal.SIGKILL)
    assert submit.wait(client, job) == 0
    first, *others = re.findall(r"going on from step (\d+)", capfd.readouterr().out + client.get_job_logs(job))
    assert int(first) == stopped and stopped < max(map(int, others)) < MANY
    end = checkpoint.load(f"{run}/checkpoints/last")
    assert end.step == MANY and end.meta["snapshot"] == f"{dataset}@1"
    assert_tracked_once(run, end.step)


@pytest.mark.slow
def test_a_worker_that_gets_sigterm_saves_and_the_job_goes_on(stack, bucket, capfd):
    """No checkpoint is due before the end, so the one that the job goes on from is that of the signal."""
    dataset, run = f"{bucket}/dataset-term", f"{bucket}/run-term"
    write_dataset([(f"photo-{seed}.jpg", photo(seed)) for seed in range(8)], dataset, IngestConfig(val_fraction=0.3))
    options = ["--loop.checkpoint-every", "100000", "--loop.validate-every", "100000"]
    job, _ = submit.submit([*command(dataset, run, steps=SOME), *options], follow=False)
    client = submit.connect(stack)
    until("the first steps", lambda: "step 10/" in client.get_job_logs(job))
    os.kill(until("two workers", lambda: workers(stack)[:2])[-1].pid, signal.SIGTERM)
    assert submit.wait(client, job) == 0
    (resumed,) = set(re.findall(r"going on from step (\d+)", capfd.readouterr().out + client.get_job_logs(job)))
    assert int(resumed) % 5 == 0 and 10 <= int(resumed) < SOME
    assert checkpoint.load(f"{run}/checkpoints/last").step == SOME


def assert_tracked_once(run: str, last: int) -> None:
    """One MLflow run has the metrics of all jobs, finished, with the checkpoint's address."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient()
    found = client.get_run(json.loads(storage.read_bytes(f"{run}/mlflow.json"))["run_id"])
    steps = {metric.step for metric in client.get_metric_history(found.info.run_id, "train/loss")}
    assert {5, 10, last - 10, last - 5, last} <= steps
    assert found.info.status == "FINISHED" and found.data.tags["checkpoint"] == checkpoint.step_uri(run, last)
    assert found.data.params["loop.batch"] == "4" and found.data.params["snapshot"].endswith("@1")
    siblings = client.search_runs([found.info.experiment_id], f"params.run = '{run}'")
    assert len(siblings) == 1
    assert "system/cpu_utilization_percentage" in found.data.metrics
    versions = client.search_model_versions(f"run_id = '{found.info.run_id}'")
    assert {version.source for version in versions} == {checkpoint.step_uri(run, step) for step in checkpoint.steps(run)}
    assert client.get_model_version_by_alias(versions[0].name, "last").source == checkpoint.step_uri(run, last)
    assert f"{last}/{last}" in runs.list_text(run, watch_s=0) and "finished" in runs.list_text(run, watch_s=0)
