"""MLflow: one tracked run for each training run, gone on with when the training run goes on.

Where MLFLOW_TRACKING_URI is not set, nothing is tracked. An MLflow server that fails while training runs is
warned of and never stops training: its rows are lost, the checkpoints are not.
"""

import contextlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from PIL import Image

from infd import storage
from infd.config_form import flat, identity
from infd.errors import PreconditionFailed
from infd.training.alarms import Alarm
from infd.training.loop import Metrics
from infd.training.run import Run, TrainingConfig
from pipelines import model_versions

if TYPE_CHECKING:
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor
    from mlflow.tracking import MlflowClient

logger = logging.getLogger(__name__)

PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
"""A server that does not answer costs training seconds, not minutes; what the user has set stands."""
for name, value in PATIENCE.items():
    os.environ.setdefault(name, value)
SWITCH = "MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING"


def begin(run: Run[TrainingConfig], experiment: str, *, parent: str | None = None) -> str | None:
    """The id of the run's MLflow run, made on its first start below `parent` and kept in RUN/mlflow.json; None where
    untracked."""
    record = {**flat(run.config), "preset": run.preset, "snapshot": run.snapshot, "run": run.uri,
              "identity": identity(run.config)}
    return opened(run.uri, experiment, record, parent=parent)


def opened(uri: str, experiment: str, record: Mapping[str, object], *, parent: str | None = None) -> str | None:
    """The id of the MLflow run that URI/mlflow.json names, made where it is missing, with the parameters `record`; None
    where untracked."""
    if not os.environ.get("MLFLOW_TRACKING_URI"):
        logger.warning("MLFLOW_TRACKING_URI is not set: metrics go to the log alone")
        return None
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    client = MlflowClient()
    try:
        known = known_id(uri)
        if known is not None:
            client.update_run(known, status="RUNNING")
            return known
        found = client.get_experiment_by_name(experiment)
        place = found.experiment_id if found else client.create_experiment(experiment)
        created = client.create_run(place, run_name=model_versions.run_name(uri),
                                    tags={"mlflow.parentRunId": parent} if parent else None)
        run_id = _claim_id(uri, created.info.run_id)
        if run_id == created.info.run_id:
            for name, value in record.items():
                client.log_param(run_id, name, value)
        return run_id
    except MlflowException as error:
        logger.warning("MLflow at %s: %s; this run is not tracked", os.environ["MLFLOW_TRACKING_URI"], error)
        return None


def finish(run_id: str | None, *, ok: bool) -> None:
    """Close the MLflow run as FINISHED or FAILED."""
    if run_id is not None:
        _try("closing the run", lambda client: client.set_terminated(run_id, "FINISHED" if ok else "FAILED"))


def known_id(uri: str) -> str | None:
    """Of the MLflow run of the run, or the sweep, at `uri`."""
    record = storage.join(uri, "mlflow.json")
    return json.loads(storage.read_bytes(record))["run_id"] if storage.exists(record) else None


def _claim_id(uri: str, run_id: str) -> str:
    try:
        storage.put_if_absent(storage.join(uri, "mlflow.json"), json.dumps({"run_id": run_id}).encode())
    except PreconditionFailed:
        return known_id(uri) or run_id
    return run_id


@contextlib.contextmanager
def observing(run: Run[TrainingConfig]) -> Iterator["MlflowObserver"]:
    """An observer of rank 0 for a run that is tracked; inside the block this machine is watched too."""
    if not model_versions.takes(run.uri):
        logger.warning("MLflow at %s: it takes no folder of a disk as a model version; the tag `checkpoint` names the newest "
                       "one; a run in a bucket has versions", os.environ.get("MLFLOW_TRACKING_URI"))
    made = MlflowObserver(run, MachineWatch(run.tracking_id or ""))
    made.machine.keep()
    try:
        yield made
    finally:
        made.machine.end()


@dataclass(frozen=True)
class MlflowObserver:
    """Sends metrics, pictures, alarms and the addresses of checkpoints to the MLflow run of `run`."""

    run: Run[TrainingConfig]
    machine: "MachineWatch"

    @property
    def run_id(self) -> str:
        return self.run.tracking_id or ""

    def log(self, step: int, metrics: Metrics) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        rows = [Metric(name, value, now, step) for name, value in metrics.items()]
        if _try("metrics", lambda client: client.log_batch(self.run_id, metrics=rows)):
            self.machine.keep()

    def picture(self, step: int, name: str, image: Image.Image) -> None:
        _try("a picture", lambda client: client.log_image(self.run_id, image, artifact_file=f"{name}/step-{step:08d}.png"))

    def checkpointed(self, step: int, uri: str, metrics: Metrics) -> None:
        _try("a checkpoint's address", lambda client: client.set_tag(self.run_id, "checkpoint", uri))
        if model_versions.takes(self.run.uri):
            _try("the model versions", lambda client: model_versions.follow(client, self.run))

    def alarm(self, step: int, alarm: Alarm) -> None:
        """The tag `alarm.NAME` says what is wrong since when, or since when no more."""
        text = f"step {step}: {alarm.text}"
        _try("an alarm", lambda client: client.set_tag(self.run_id, f"alarm.{alarm.name}", text))


@dataclass
class MachineWatch:
    """MLflow's own monitor of this machine: system/… every 10 s (MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL), of CPU, memory,
    disk, network, and of NVIDIA GPUs where nvidia-ml-py is installed. MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING=false: none.

    It is a thread, which ends by itself once the server fails to answer; `keep` begins it again.
    """

    run_id: str
    monitor: "SystemMetricsMonitor | None" = field(default=None, init=False)
    off: bool = field(default_factory=lambda: os.environ.get(SWITCH, "true").lower() in ("false", "0"), init=False)

    def keep(self) -> None:
        """Begin, where it does not run."""
        if self.off or self.alive:
            return
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        self.end()
        try:
            self.monitor = SystemMetricsMonitor(self.run_id, resume_logging=True)
            self.monitor.start()
        except Exception as error:                                 # whatever psutil meets on a strange machine
            logger.warning("MLflow: this machine is not watched: %s: %s", type(error).__name__, error)
            self.off = True

    @property
    def alive(self) -> bool:
        thread = self.monitor and self.monitor._process
        return bool(thread and thread.is_alive())

    def end(self) -> None:
        """Return once its thread has ended and what it held is sent."""
        if self.monitor is not None:
            self.monitor.finish()
            self.monitor = None


def _try(what: str, call: Callable[["MlflowClient"], object]) -> bool:
    """Whether `call` succeeded; where it did not, a warning says what was not sent."""
    from mlflow.tracking import MlflowClient

    try:
        call(MlflowClient())
        return True
    except Exception as error:  # of mlflow, of the store that holds its artifacts, of a proxy that answers HTML …
        logger.warning("MLflow: %s not sent: %s: %s", what, type(error).__name__, error)
        return False
