"""MLflow: one tracked run for each training run, gone on with when the training run goes on.

Where MLFLOW_TRACKING_URI is not set, nothing is tracked. An MLflow server that fails while training runs is
warned of and never stops training: its rows are lost, the checkpoints are not.
"""

import json
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image

from infd import storage
from infd.config import flat, identity
from infd.errors import PreconditionFailed, StorageError
from infd.training.loop import Metrics
from infd.training.run import Run

logger = logging.getLogger(__name__)

PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
"""A server that does not answer costs training seconds, not minutes; what the user has set stands."""
for name, value in PATIENCE.items():
    os.environ.setdefault(name, value)


def begin(run: Run, experiment: str) -> str | None:
    """The id of the run's MLflow run, made on its first start and kept in RUN/mlflow.json; None where untracked."""
    if not os.environ.get("MLFLOW_TRACKING_URI"):
        logger.warning("MLFLOW_TRACKING_URI is not set: metrics go to the log alone")
        return None
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    client = MlflowClient()
    try:
        known = _known_id(run)
        if known is not None:
            client.update_run(known, status="RUNNING")
            return known
        found = client.get_experiment_by_name(experiment)
        place = found.experiment_id if found else client.create_experiment(experiment)
        created = client.create_run(place, run_name=run.uri.rstrip("/").rsplit("/", 1)[-1])
        run_id = _claim_id(run, created.info.run_id)
        if run_id == created.info.run_id:
            record = {**flat(run.config), "preset": run.preset, "snapshot": run.snapshot, "run": run.uri,
                      "identity": identity(run.config)}
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


def _known_id(run: Run) -> str | None:
    record = storage.join(run.uri, "mlflow.json")
    return json.loads(storage.read_bytes(record))["run_id"] if storage.exists(record) else None


def _claim_id(run: Run, run_id: str) -> str:
    try:
        storage.put_if_absent(storage.join(run.uri, "mlflow.json"), json.dumps({"run_id": run_id}).encode())
    except PreconditionFailed:
        return _known_id(run) or run_id
    return run_id


@dataclass(frozen=True)
class MlflowObserver:
    """Sends metrics, pictures and checkpoint addresses of rank 0 to an MLflow run."""

    run_id: str

    def log(self, step: int, metrics: Metrics) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        rows = [Metric(name, value, now, step) for name, value in metrics.items()]
        _try("metrics", lambda client: client.log_batch(self.run_id, metrics=rows))

    def picture(self, step: int, name: str, image: Image.Image) -> None:
        _try("a picture", lambda client: client.log_image(self.run_id, image, artifact_file=f"{name}/step-{step:08d}.png"))

    def checkpointed(self, step: int, uri: str, metrics: Metrics) -> None:
        _try("a checkpoint's address", lambda client: client.set_tag(self.run_id, "checkpoint", uri))


def _try(what: str, call: Callable[..., object]) -> None:
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    try:
        call(MlflowClient())
    except (MlflowException, StorageError, OSError) as error:
        logger.warning("MLflow: %s not sent: %s", what, error)
