"""MLflow as a person sees it: every figure of a run, checkpoints as versions, this machine; and an MLflow that fails."""

import dataclasses
import json
import threading
import time
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient
from pictures import encoded, picture

from infd import checkpoint, storage
from infd.config import AutoencoderTrainingConfig, IngestConfig, LossConfig, RunConfig
from infd.config_form import flat
from infd.data.snapshot import write_dataset
from infd.presets import tiny
from infd.training.alarms import Alarm
from infd.training.run import Run
from pipelines import model_versions, tracking
from pipelines.train import train_autoencoder

pytestmark = pytest.mark.slow

THREAD = "SystemMetricsMonitor"


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    """A client of a registry in a database of its own, which MLFLOW_TRACKING_URI names."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}")
        patch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.3")
        patch.delenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", raising=False)
        patch.chdir(tmp_path_factory.mktemp("artifacts"))          # of a database, they lie in the working folder
        yield MlflowClient()


def config(steps: int = 12) -> AutoencoderTrainingConfig:
    base = tiny()
    return dataclasses.replace(
        base, model=dataclasses.replace(base.model, quantizer="vq", z_dim=3, codebook_size=32),
        crop=dataclasses.replace(base.crop, r_max=256), loss=LossConfig(lpips=0, gan=0.1, gan_from_step=4),
        loop=dataclasses.replace(base.loop, steps=steps, log_every=2, checkpoint_every=3, validate_every=6, keep_every=6,
                                 validate_samples=8, preview_every=12, preview_photos=1, preview_px=128))


def tracked(uri: str) -> Run:
    run = Run(uri, "tiny", config(), f"{uri}/data@1")
    return dataclasses.replace(run, tracking_id=tracking.begin(run, "tests"))


def save(run: Run, *steps: int, best: int) -> None:
    for step in steps:
        meta = {"step": step, "config": flat(run.config), "metrics": {"val/loss": step / 100, "train/loss": 1.0}}
        checkpoint.save(checkpoint.step_uri(run.uri, step), model={}, train_state={}, meta=meta)
        checkpoint.point(run.uri, "last", step)
    checkpoint.point(run.uri, "best", best)


def versions(client: MlflowClient, name: str) -> dict[int, str]:
    """version -> the folder's name of its source."""
    return {found.version: found.source.rsplit("/", 1)[-1] for found in client.search_model_versions(f"name='{name}'")}


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == THREAD]


def until(done, what: str) -> None:
    end = time.monotonic() + 60
    while not done():
        assert time.monotonic() < end, f"waited 60 s for {what}"
        time.sleep(0.05)


def test_a_run_shows_all_its_figures_and_leaves_no_thread(client, tmp_path):
    dataset = str(tmp_path / "data")
    write_dataset([(f"photo-{seed}.png", encoded(picture(300, 280, seed))) for seed in range(8)], dataset,
                  IngestConfig(val_fraction=0.4))
    where = RunConfig(dataset=dataset, run=f"{dataset}/training/all figures", ray=False, device="cpu", experiment="tests")
    last = train_autoencoder("tiny", config(), where)
    assert not threads()
    run = client.get_run(json.loads(storage.read_bytes(f"{where.run}/mlflow.json"))["run_id"])
    assert {"train/loss", "train/l1", "train/psnr", "train/quantizer", "train/codebook_use", "train/codebook_perplexity",
            "train/gan", "train/gan_weight", "train/disc_accuracy", "train/disc_loss", "train/logits_real",
            "train/logits_fake", "train/grad_norm", "train/disc_grad_norm", "speed/images_per_s",
            "speed/data_wait_fraction", "val/loss", "val/psnr", "val/loss_r_to_128", "val/psnr_r_to_256",
            "system/cpu_utilization_percentage", "system/system_memory_usage_megabytes"} <= run.data.metrics.keys()
    assert run.info.status == "FINISHED" and run.data.tags["checkpoint"] == last
    assert [file.path for file in client.list_artifacts(run.info.run_id, "preview")] == ["preview/step-00000012.png"]
    assert sorted(versions(client, "all-figures").values()) == ["step-00000006", "step-00000009", "step-00000012"]


def test_law_versions_are_the_complete_checkpoints_and_aliases_the_pointers(client, tmp_path):
    run = tracked(str(tmp_path / "law"))
    save(run, 3, 6, 9, best=6)
    model_versions.follow(client, run)
    assert versions(client, "law") == {1: "step-00000003", 2: "step-00000006", 3: "step-00000009"}
    found = client.get_model_version_by_alias("law", "best")
    assert found.source == f"{run.uri}/checkpoints/step-00000006" and found.run_id == run.tracking_id
    assert found.tags == {"step": "6", "val/loss": "0.06"}
    assert client.get_model_version_by_alias("law", "last").tags == {"step": "9"}      # not validated at 9: no old figure

    storage.delete(storage.join(checkpoint.step_uri(run.uri, 9), checkpoint.COMPLETE))
    storage.delete_prefix(checkpoint.step_uri(run.uri, 3))
    save(run, 12, 15, best=15)                                     # of which the registry heard nothing at 12
    for _ in range(2):
        model_versions.follow(client, run)
        assert versions(client, "law") == {2: "step-00000006", 4: "step-00000012", 5: "step-00000015"}
        assert client.get_registered_model("law").aliases == {"last": 5, "best": 5}


def test_two_runs_of_one_name_have_models_of_their_own(client, tmp_path):
    for folder in ("one", "two"):
        run = tracked(str(tmp_path / folder / "same name"))
        save(run, 3, best=3)
        for _ in range(2):
            model_versions.follow(client, run)
    names = [model.name for model in client.search_registered_models() if model.name.startswith("same-name")]
    assert len(names) == 2 and "same-name" in names
    assert all(list(versions(client, name)) == [1] for name in names)


def test_an_alarm_is_a_tag(client, tmp_path):
    run = tracked(str(tmp_path / "alarmed"))
    with tracking.observing(run) as observer:
        observer.alarm(40, Alarm("codebook", "the codebook dies: …"))
    assert client.get_run(observer.run_id).data.tags["alarm.codebook"] == "step 40: the codebook dies: …"


def test_the_machine_is_watched_until_the_block_ends_also_by_an_error(client, tmp_path):
    run = tracked(str(tmp_path / "watched"))

    def rows() -> list[int]:
        return [row.step for row in client.get_metric_history(run.tracking_id, "system/cpu_utilization_percentage")]

    for count in (1, 2):                                           # a run that goes on goes on with its rows
        with pytest.raises(ZeroDivisionError), tracking.observing(run) as observer:
            before = len(rows())
            until(lambda before=before: len(rows()) >= before + 2, "two rows")
            observer.machine.monitor._shutdown_event.set()          # as after a server that did not answer once
            until(lambda: not threads(), "the end of the thread")
            observer.log(count, {"train/loss": 1.0})
            assert threads()
            raise ZeroDivisionError
        assert not threads()
    found = rows()
    assert len(set(found)) == len(found)


def test_no_watch_where_mlflow_is_told_so(client, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "false")
    with tracking.observing(tracked(str(tmp_path / "unwatched"))):
        assert not threads()


def test_error_a_server_that_fails_stops_nothing(tmp_path, monkeypatch, caplog):
    """Nobody listens on port 9 of this machine; a server would refuse the folder of a disk as a version's source."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    run = dataclasses.replace(Run(str(tmp_path / "run"), "tiny", config(), "data@1"), tracking_id="0" * 32)
    assert tracking.begin(run, "tests") is None
    with tracking.observing(run) as observer:
        observer.log(1, {"train/loss": 1.0})
        observer.picture(1, "preview", picture(8, 8))
        observer.alarm(1, Alarm("codebook", "…"))
        observer.checkpointed(1, "there", {})
    assert not threads()
    for what in ("metrics", "a picture", "an alarm", "a checkpoint's address"):
        assert f"MLflow: {what} not sent" in caplog.text
    assert "it takes no folder of a disk as a model version" in caplog.text and "the model versions" not in caplog.text
    assert model_versions.takes("s3://bucket/run") and not model_versions.takes(str(Path(run.uri)))


@pytest.mark.parametrize("error", [ValueError("HTML in the place of JSON"), KeyError("run"), ImportError("boto3")])
def test_error_whatever_a_call_raises_stops_nothing(error, caplog):
    def call(client: object) -> None:
        raise error

    assert not tracking._try("a row", call)
    assert f"MLflow: a row not sent: {type(error).__name__}" in caplog.text


def test_error_a_checkpoint_that_goes_meanwhile_stops_nothing(client, tmp_path, caplog, monkeypatch):
    run = tracked(str(tmp_path / "gone"))
    save(run, 3, best=3)
    (Path(checkpoint.step_uri(run.uri, 3)) / checkpoint.META).write_bytes(b"{}")
    with tracking.observing(run) as observer:
        observer.checkpointed(3, checkpoint.step_uri(run.uri, 3), {})
    assert "MLflow: the model versions not sent: CheckpointError: checkpoint" in caplog.text
