"""Checkpoints as versions of a registered model in MLflow: addresses, aliases and figures; nothing is uploaded.

`follow` makes the registry equal to the run's folder instead of adding to it, so what a failed server or a killed job left
out comes with the next checkpoint, and what was pruned goes.
"""

import hashlib
import re
from typing import TYPE_CHECKING, Any

from infd import checkpoint, storage
from infd.training.run import Run, TrainingConfig

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient


def takes(uri: str) -> bool:
    """Whether the registry takes a checkpoint below `uri`: an MLflow server refuses all paths of a disk, lest clients have
    it read its own; a registry that is a database does not."""
    import mlflow

    return storage.is_remote(uri) or not mlflow.get_registry_uri().startswith(("http://", "https://"))


def run_name(uri: str) -> str:
    """What a run is called: its folder's name; SWEEP-007 for the trial SWEEP/trials/007."""
    *_, sweep, folder, name = ["", "", *uri.rstrip("/").split("/")]
    return f"{sweep}-{name}" if folder == "trials" and name.isdigit() else name


def follow(client: "MlflowClient", run: Run[TrainingConfig]) -> None:
    """Law: afterwards the versions of the run's model are its complete checkpoints, the aliases its pointers."""
    name = model_of(client, run)
    kept = {checkpoint.step_uri(run.uri, step): step for step in checkpoint.steps(run.uri)}
    versions = {version.source: version.version for version in client.search_model_versions(f"name='{name}'")}
    for uri in [uri for uri in kept if uri not in versions]:               # ascending steps, so versions ascend too
        made = client.create_model_version(name, uri, run.tracking_id, tags=figures(uri), await_creation_for=0)
        versions[uri] = made.version
    aliases = client.get_registered_model(name).aliases
    for pointer in checkpoint.POINTERS:
        step = checkpoint.pointed(run.uri, pointer)
        version = versions.get(checkpoint.step_uri(run.uri, step)) if step is not None else None
        if version is not None and aliases.get(pointer) != version:
            client.set_registered_model_alias(name, pointer, version)
    for uri in versions.keys() - kept.keys():
        client.delete_model_version(name, versions[uri])


def model_of(client: "MlflowClient", run: Run[TrainingConfig]) -> str:
    """The run's registered model, made where it is missing: the name of the run's folder; and a hash of its address, where
    another run of that name has taken it."""
    from mlflow.exceptions import MlflowException

    folder = re.sub(r"[^A-Za-z0-9_.-]", "-", run_name(run.uri))
    own = f"{folder}-{hashlib.sha256(run.uri.encode()).hexdigest()[:8]}"
    for name in (folder, own):
        try:
            client.create_registered_model(name, tags={"run": run.uri, "snapshot": run.snapshot})
            return name
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        if client.get_registered_model(name).tags.get("run") == run.uri:
            return name
    raise MlflowException(f"registered models {folder} and {own}: both are there and of other runs; rename one")


def figures(uri: str) -> dict[str, Any]:
    """Tags of a checkpoint's version: its step, and the figures that were made at this very step."""
    meta = checkpoint.load(uri).meta
    step, every, steps = meta["step"], meta["config"]["loop.validate_every"], meta["config"]["loop.steps"]
    shown = ("val/loss", "val/psnr", "val/lpips") if step % every == 0 or step == steps else ()
    shown += tuple(name for name in meta["metrics"] if name.startswith("eval/"))
    return {"step": step} | {name: f"{meta['metrics'][name]:.5g}" for name in shown if name in meta["metrics"]}
