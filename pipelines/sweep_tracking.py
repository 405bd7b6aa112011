"""What a sweep came to, in its own MLflow run: the best, the tables, the report's page.

A server that fails is warned of, and the sweep's folder has it all.
"""

import logging
import os
from typing import TYPE_CHECKING

from infd import storage
from pipelines import tracking
from pipelines.sweep_plan import values_text
from pipelines.sweep_summary import Summary, markdown

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

logger = logging.getLogger(__name__)

os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")    # stdout carries the table


def track(found: Summary) -> None:
    """Send it, and close the runs that no driver closed; nothing where the sweep is not tracked."""
    run_id = tracking.known_id(found.plan.uri)
    if run_id is None or not os.environ.get("MLFLOW_TRACKING_URI"):
        return
    from mlflow.tracking import MlflowClient

    try:
        close(MlflowClient(), run_id, found)
        send(MlflowClient(), run_id, found)
    except Exception as error:  # of mlflow, of the store that holds its artifacts, of a proxy that answers HTML …
        logger.warning("MLflow: what the sweep came to was not sent: %s: %s", type(error).__name__, error)


def close(client: "MlflowClient", run_id: str, found: Summary) -> None:
    """Of the sweep and of trials whose driver was killed when they were over, before it could say so."""
    parent = client.get_run(run_id)
    fates = {fate.trial.run: fate for fate in found.fates if fate.state != "unfinished"}
    for child in client.search_runs([parent.info.experiment_id], f"tags.mlflow.parentRunId = '{run_id}' and "
                                                                 "attributes.status = 'RUNNING'"):
        if (fate := fates.get(child.data.params.get("run", ""))) is not None:
            client.set_terminated(child.info.run_id, "FINISHED" if fate.over else "FAILED")
    if parent.info.status == "RUNNING":
        client.set_terminated(run_id)


def send(client: "MlflowClient", run_id: str, found: Summary) -> None:
    """Figures and values of the best point, the best checkpoint, tables and page."""
    metric, point, trial = found.plan.sweep.metric, found.best_point, found.best_trial
    for name, value in (("mean", point and point.mean), ("spread", point and point.spread)):
        if value is not None:
            client.log_metric(run_id, f"{metric}.{name}", value)
    client.set_tag(run_id, "best_point", values_text(point.values) if point else "")
    client.set_tag(run_id, "best_checkpoint", trial.checkpoint if trial else "")
    client.set_tag(run_id, "caution", found.caution)
    client.log_text(run_id, markdown(found), "sweep.md")
    if found.page:
        client.log_text(run_id, storage.read_bytes(found.page).decode(), "report.html")
