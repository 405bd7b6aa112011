"""Takes away what demos made, by the records that they left, and says what else the local stack keeps."""

import json
import logging
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from infd import s3_client, storage

logger = logging.getLogger(__name__)

RECORD = "made-*.json"


@dataclass(frozen=True)
class Made:
    """Where one demo put its photographs and its dataset; its runs lie below the dataset."""

    photos: str
    dataset: str

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)))


def clean(folder: Path) -> None:
    """Remove the photographs, datasets, runs and MLflow runs that `folder` has records of, then `folder`."""
    for record in sorted(folder.glob(RECORD)):
        made = Made(**json.loads(record.read_text()))
        for info in list(storage.list_objects(made.dataset)):
            if info.uri.endswith("/mlflow.json"):
                forget_run(json.loads(storage.read_bytes(info.uri))["run_id"])
        storage.delete_prefix(made.dataset)
        storage.delete_prefix(made.photos)
    shutil.rmtree(folder, ignore_errors=True)


def forget_run(run_id: str) -> None:
    """Delete an MLflow run and its artifacts; a server that does not answer keeps its record, and is warned of."""
    if not os.environ.get("MLFLOW_TRACKING_URI"):
        return
    from mlflow.exceptions import MlflowException
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
    from mlflow.tracking import MlflowClient

    try:
        client = MlflowClient()
        if artifacts := client.get_run(run_id).info.artifact_uri:
            get_artifact_repository(artifacts).delete_artifacts()
        client.delete_run(run_id)
    except MlflowException as error:
        logger.warning("MLflow run %s stays: %s", run_id, error)


def others() -> list[str]:
    """What the stack's servers still hold: buckets with anything in them, and MLflow experiments with runs."""
    found = []
    for bucket in s3_client.client().list_buckets()["Buckets"]:
        address = f"{s3_client.SCHEME}{bucket['Name']}"
        if next(storage.list_objects(address), None) is not None:
            found.append(address)
    if os.environ.get("MLFLOW_TRACKING_URI"):
        from mlflow.tracking import MlflowClient

        client = MlflowClient()
        found += [f"MLflow experiment {experiment.name}" for experiment in client.search_experiments()
                  if client.search_runs([experiment.experiment_id], max_results=1)]
    return found
