"""`models:/NAME@best`: checkpoints by the names that MLflow's registry has for them."""

import os
import re

from infd.errors import CheckpointError

FORM = re.compile(r"models:/(?P<name>[^@/]+)(@(?P<alias>[^@/]+)|/(?P<version>\d+))")


def resolve(uri: str) -> str:
    """The checkpoint's own address: of "models:/NAME@ALIAS" and "models:/NAME/VERSION" that of the version, else `uri`.

    Raises CheckpointError where MLFLOW_TRACKING_URI is not set, or the registry does not have it.
    """
    if not uri.startswith("models:/"):
        return uri
    found = FORM.fullmatch(uri)
    if found is None:
        raise CheckpointError(f"{uri}: not a name of the registry; expected models:/NAME@best, @last, or models:/NAME/3")
    if not os.environ.get("MLFLOW_TRACKING_URI"):
        raise CheckpointError(f"{uri}: MLFLOW_TRACKING_URI is not set, so no registry can tell; set it, or name the "
                              "checkpoint's folder")
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    client = MlflowClient()
    try:
        if found["alias"]:
            version = client.get_model_version_by_alias(found["name"], found["alias"])
        else:
            version = client.get_model_version(found["name"], found["version"])
    except MlflowException as error:
        raise CheckpointError(f"{uri}: MLflow at {os.environ['MLFLOW_TRACKING_URI']} says: {error}; jobs/runs.py show RUN "
                              "names a run's checkpoints") from error
    return str(version.source)
