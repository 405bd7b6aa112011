"""A report's figures and page in the MLflow runs of the training runs that it shows.

MLFLOW_TRACKING_URI names the server; one that fails is warned of, and the report stands all the same.
"""

import hashlib
import json
import logging
import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infd import storage
from infd.errors import ConfigError
from infd.evaluation.result import Result, tracked_name
from pipelines.report_tables import Row, condition_of, condition_text, drawn

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

logger = logging.getLogger(__name__)

BATCH = 100
"""Figures or tags of one request; servers take no more tags."""
TAG_CHARACTERS = 5000
"""The longest tag that servers take, old ones too."""


def track(rows: list[Row], page: str) -> list[str]:
    """Log the figures of rows as eval/… at their step, and the page as an artifact; the ids of the MLflow runs.

    Rows without a tracked run are passed over with a warning. Raises ConfigError: MLFLOW_TRACKING_URI is not set.
    """
    if not os.environ.get("MLFLOW_TRACKING_URI"):
        raise ConfigError("mlflow: MLFLOW_TRACKING_URI is not set; expected the server's address; set it, or leave out "
                          "--mlflow")
    from mlflow.tracking import MlflowClient

    client, done, of_runs = MlflowClient(), [], defaultdict(list)
    for row in rows:
        if row.run and row.run.mlflow_run:
            of_runs[row.run.mlflow_run].append(row)
        else:
            logger.warning("%s: no tracked run; its figures are not in MLflow", row.name)
    for run_id, of_run in of_runs.items():
        try:
            send(client, run_id, of_run)
            send_page(client, run_id, page)
            done.append(run_id)
        except Exception as error:  # of mlflow, of the store that holds its artifacts, of a proxy that answers HTML …
            names = ", ".join(row.name for row in of_run)
            logger.warning("MLflow: the figures of %s not sent: %s: %s", names, type(error).__name__, error)
    return done


# ---------------------------------------------------------------- names


@dataclass(frozen=True)
class Sent:
    """A result of a row of a run, or of files that lie with it."""

    row: Row
    folder: str
    result: Result

    @property
    def way(self) -> str:
        """8 digits that stand for the conditions and how the images were drawn; of no checkpoint's images, for them too."""
        judged = self.result.sources[-1]
        files = "" if judged.get("kind") in ("seeds", "reconstructions") else self.row.content
        about = [condition_of(self.result), drawn(judged), files]
        return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:8]


def results_of(rows: Sequence[Row]) -> list[Sent]:
    return [Sent(row, folder, result) for row in rows for folder, result in zip(row.folders, row.results, strict=True)]


def metrics_of(found: Sequence[Sent]) -> list[tuple[str, float, int]]:
    """(name, value, step) of each figure of the rows of one run.

    A name that figures of several ways share, at whatever step, ends in the way's digits: eval/psnr.256.c1a2b3c4.
    Law: no two figures have one name at one step.
    """
    ways: dict[str, set[str]] = defaultdict(set)
    for one in found:
        for metric in one.result.metrics:
            ways[tracked_name(metric.name)].add(one.way)
    return [(f"{name}.{one.way}" if len(ways[name]) > 1 else name, metric.value, one.row.step or 0)
            for one in found for metric in one.result.metrics for name in [tracked_name(metric.name)]]


def tags_of(found: Sequence[Sent]) -> dict[str, str]:
    """How the figures of each protocol were made, as JSON: eval.PROTOCOL, or eval.PROTOCOL.c1a2b3c4 where there are several
    ways, whose digits are those of the metrics' names."""
    ways: dict[str, set[str]] = defaultdict(set)
    for one in found:
        ways[one.result.protocol].add(one.way)
    told: dict[str, dict[str, Any]] = {}
    for one in found:
        result, protocol = one.result, one.result.protocol
        name = f"eval.{protocol}.{one.way}" if len(ways[protocol]) > 1 else f"eval.{protocol}"
        about = told.setdefault(name, {
            "way": one.way, "conditions": condition_text(result), "counts": result.counts, "drawn": drawn(result.sources[-1]),
            "choices": result.choices, "folders": {}})
        about["folders"][str(one.row.step or 0)] = one.folder
    return {name: tag_text(about) for name, about in told.items()}


def tag_text(about: dict[str, Any]) -> str:
    """JSON, without the single choices where the server would not take it."""
    text = json.dumps(about, sort_keys=True)
    return text if len(text) <= TAG_CHARACTERS else json.dumps({**about, "choices": "see the result"}, sort_keys=True)


# ---------------------------------------------------------------- sending


def send(client: "MlflowClient", run_id: str, rows: Sequence[Row]) -> None:
    """The figures of the rows of a run, and how they were made, as a tag for each protocol."""
    from mlflow.entities import Metric, RunTag

    now, found = int(time.time() * 1000), results_of(rows)
    metrics = [Metric(name, value, now, step) for name, value, step in metrics_of(found)]
    tags = [RunTag(name, text) for name, text in tags_of(found).items()]
    for start in range(0, len(metrics), BATCH):
        client.log_batch(run_id, metrics=metrics[start:start + BATCH])
    for start in range(0, len(tags), BATCH):
        client.log_batch(run_id, tags=tags[start:start + BATCH])


def send_page(client: "MlflowClient", run_id: str, page: str) -> None:
    with tempfile.TemporaryDirectory(prefix="infd-report-") as folder:
        path = Path(folder) / "report.html"
        path.write_bytes(storage.read_bytes(page))
        client.log_artifact(run_id, str(path), artifact_path="report")
