"""A report's figures and page in the MLflow runs of the training runs that it shows.

MLFLOW_TRACKING_URI names the server; one that fails is warned of, and the report stands all the same.
"""

import json
import logging
import os
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from infd import storage
from infd.errors import ConfigError
from infd.evaluation.result import tracked_name
from pipelines.report_tables import Row

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

logger = logging.getLogger(__name__)


def track(rows: list[Row], page: str) -> list[str]:
    """Log the figures of rows as eval/… at their step, and the page as an artifact; the ids of the MLflow runs.

    Rows without a tracked run are passed over with a warning. Raises ConfigError: MLFLOW_TRACKING_URI is not set.
    """
    if not os.environ.get("MLFLOW_TRACKING_URI"):
        raise ConfigError("mlflow: MLFLOW_TRACKING_URI is not set; expected the server's address; set it, or leave out "
                          "--mlflow")
    from mlflow.tracking import MlflowClient

    client, done = MlflowClient(), []
    for row in rows:
        run_id = row.run.mlflow_run if row.run else ""
        if not run_id:
            logger.warning("%s: no tracked run; its figures are not in MLflow", row.name)
            continue
        try:
            send(client, run_id, row)
            if run_id not in done:
                send_page(client, run_id, page)
                done.append(run_id)
        except Exception as error:  # of mlflow, of the store that holds its artifacts, of a proxy that answers HTML …
            logger.warning("MLflow: the figures of %s not sent: %s: %s", row.name, type(error).__name__, error)
    return done


def send(client: "MlflowClient", run_id: str, row: Row) -> None:
    """The figures of a row, in one batch, and how they were made, as a tag for each protocol."""
    from mlflow.entities import Metric, RunTag

    now, step = int(time.time() * 1000), row.step or 0
    metrics = [Metric(tracked_name(one.name), one.value, now, step) for result in row.results for one in result.metrics]
    tags = [RunTag(f"eval.{result.protocol}", json.dumps({"folder": folder, "counts": result.counts}))
            for folder, result in zip(row.folders, row.results, strict=True)]
    client.log_batch(run_id, metrics=metrics, tags=tags)


def send_page(client: "MlflowClient", run_id: str, page: str) -> None:
    with tempfile.TemporaryDirectory(prefix="infd-report-") as folder:
        path = Path(folder) / "report.html"
        path.write_bytes(storage.read_bytes(page))
        client.log_artifact(run_id, str(path), artifact_path="report")
