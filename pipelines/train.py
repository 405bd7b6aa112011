"""Training on Ray Train: the driver opens the run, the workers run the loop of infd.training.

The checkpoints are the run's own (infd/checkpoint.py), not Ray's: the same ones with and without Ray, readable
without it, and whole or absent. Ray Train sets up the process group and replaces dead workers.
"""

import contextlib
import logging
import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

from infd import checkpoint, storage
from infd.config import AutoencoderTrainingConfig, DiffusionTrainingConfig, LatentRunConfig, PlaceConfig, RunConfig
from infd.data.latents import open_latents
from infd.data.snapshot import split_address
from infd.errors import ConfigError, TrainingError
from infd.lease import driver_uri, held
from infd.training import interruption
from infd.training.autoencoder_run import required_weights, run_autoencoder
from infd.training.diffusion_run import fitted, run_diffusion
from infd.training.loop import Metrics
from infd.training.run import Observer, Run, TrainingConfig, check_batch, default_run, open_run, warn_of_newer
from infd.training.world import World, join
from pipelines import logs, tracking
from pipelines.cluster import autoscales, passed_on
from pipelines.progress import Observers, ProgressObserver

logger = logging.getLogger(__name__)

GROWTH_S = 1800
"""For how long a cluster that grows may take to bring the workers: machines start, pull an image, install torch."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """What a run that is part of a sweep has besides; on Ray alone."""

    parent: str | None = None
    """Id of the MLflow run above its own."""
    observer: Observer | None = None
    """Told too, on rank 0, in place of the worker's log; it travels there."""


def train_autoencoder(preset: str, config: AutoencoderTrainingConfig, where: RunConfig, *, part: Part | None = None) -> str:
    """Train, or go on training, the run that `where` names; returns the URI of its last checkpoint."""
    if not where.dataset:
        raise ConfigError("dataset: missing; give --dataset s3://bucket/datasets/NAME or a folder (or --dry-run)")
    check_batch(config.loop, workers_of(where))
    required_weights(config)
    where = replace(where, dataset=storage.absolute(where.dataset))
    uri = where.run or default_run(where.dataset, preset, config, where.start_from)
    run = open_run(uri, preset=preset, config=config, dataset=where.dataset, start_from=where.start_from)
    return train_run(run, where, part=part)


def train_diffusion(preset: str, config: DiffusionTrainingConfig, where: LatentRunConfig, *, part: Part | None = None) -> str:
    """The same for stage two, from latents."""
    if not where.latents:
        raise ConfigError("latents: missing; give --latents with the address that jobs/encode_latents.py printed, or "
                          "--dry-run")
    check_batch(config.loop, workers_of(where))
    latents = open_latents(where.latents)
    settled = fitted(config, latents)
    snapshot = latents.info["snapshot"]
    warn_of_newer(where.run or latents.uri, split_address(snapshot)[0], snapshot)
    uri = where.run or default_run(snapshot, preset, config, where.start_from, latents=latents.uri)
    run = open_run(uri, preset=preset, config=settled, dataset=snapshot, start_from=where.start_from,
                   latents={"address": latents.uri, "sha256": latents.sha256})
    return train_run(run, where, part=part)


def workers_of(where: PlaceConfig) -> int:
    return where.workers if where.ray else int(os.environ.get("WORLD_SIZE", "1"))


def train_run(run: Run[TrainingConfig], where: PlaceConfig, *, part: Part | None = None) -> str:
    """Train, or go on training; the URI of the last checkpoint."""
    steps = run.config.loop.steps
    logger.info("run %s: preset %s, snapshot %s", run.uri, run.preset, run.snapshot)
    if (done := checkpoint.newest(run.uri)) is not None and done.step >= steps:
        logger.info("run %s: finished at step %d already; nothing to do", run.uri, done.step)
        return done.uri
    if where.ray:
        with driving(run):
            train_on_ray(run, where, part=part or Part())
    else:
        train_here(run, where)
    finished = checkpoint.newest(run.uri)
    if finished is None or finished.step < steps:
        raise TrainingError(f"run {run.uri}: ended at step {finished.step if finished else 0} of {steps}; "
                            "run the same command again to go on")
    return finished.uri


def carried(run: Run[TrainingConfig], *, world: World, observer: Observer,
            wished: Callable[[], bool] = interruption.wished) -> Metrics:
    """Run the stage that the run's config is of, on this rank."""
    if isinstance(run.config, DiffusionTrainingConfig):
        return run_diffusion(cast(Run[DiffusionTrainingConfig], run), world=world, observer=observer, wished=wished)
    return run_autoencoder(cast(Run[AutoencoderTrainingConfig], run), world=world, observer=observer, wished=wished)


def driving(run: Run[TrainingConfig]) -> contextlib.AbstractContextManager[None]:
    """The right to write this run; two drivers of one run would mix their checkpoints."""
    return held(driver_uri(run.uri), what=f"run {run.uri}")


def train_here(run: Run[TrainingConfig], where: PlaceConfig) -> None:
    """Train in this process, or as one of torchrun's."""
    world = join(where.device)
    with driving(run) if world.rank == 0 else contextlib.nullcontext():
        run_id, ok = tracking.begin(run, where.experiment) if world.rank == 0 else None, False
        try:
            tracked = replace(run, tracking_id=run_id)
            with interruption.listening(), observing(tracked, world) as observer:
                carried(tracked, world=world, observer=observer)
                world.leave()                                      # rank 0 has written its last checkpoint by then
            ok = True
        finally:
            tracking.finish(run_id, ok=ok)


def worker_env() -> dict[str, str]:
    """Variables for all that runs on the cluster."""
    own = {"RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": str(GROWTH_S)} if autoscales() else {}
    if os.environ.get("RAY_ADDRESS", "auto") != "auto":                # Ray Train's helpers look for a cluster by themselves
        own["RAY_ADDRESS"] = os.environ["RAY_ADDRESS"]
    return {**own, **passed_on(), "RAY_TRAIN_V2_ENABLED": "1", "RAY_TRAIN_ENABLE_PRINT_PATCH": "0"}


def train_on_ray(run: Run[TrainingConfig], where: PlaceConfig, *, part: Part) -> None:
    """Train on `where.workers` Ray Train workers, each replaced when it dies."""
    import ray
    from ray.train import FailureConfig, ScalingConfig, TrainingFailedError
    from ray.train import RunConfig as RayRunConfig

    from pipelines.cluster import connect
    from pipelines.ray_torch import ListeningTorch, Trainer

    with connect(env=worker_env()):
        resources = ray.cluster_resources()
        gpu = wants_gpu(where, resources)
        cpus = check_fits(where, resources, gpu=gpu)
        run_id = tracking.begin(run, where.experiment, parent=part.parent)
        filesystem, path = storage.filesystem(storage.join(run.uri, "ray"))
        trainer = Trainer(
            train_worker,
            train_loop_config={**replace(run, tracking_id=run_id).payload(), "observer": part.observer},
            scaling_config=ScalingConfig(num_workers=where.workers, use_gpu=gpu,
                                         resources_per_worker={"CPU": cpus} | ({"GPU": 1} if gpu else {})),
            torch_config=ListeningTorch(backend="nccl" if gpu else "gloo"),
            run_config=RayRunConfig(
                name=f"{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:6]}",
                storage_path=path, storage_filesystem=filesystem,
                failure_config=FailureConfig(max_failures=where.max_failures, controller_failure_limit=2)),
        )
        ok = False
        try:
            stopped = trainer.fit().return_value
            if stopped is not None:
                raise TrainingError(stopped)
            ok = True
        except TrainingFailedError as error:
            raise TrainingError(first_cause(error)) from error
        finally:
            tracking.finish(run_id, ok=ok)


def train_worker(payload: dict[str, Any]) -> str | None:
    """What each Ray Train worker runs. Returns why training must not go on, or None.

    That is no exception, because Ray would start the workers again, to the same end. Interrupted is one, for the same
    reason: Ray starts them elsewhere, and they go on from the checkpoint.
    """
    import ray.train
    import ray.train.torch

    logs.to_stderr()
    world = World.current(ray.train.torch.get_device())
    if world.rank or payload["observer"]:
        logging.getLogger().setLevel(logging.WARNING)
    run = Run.of(payload)
    try:
        # ListeningTorch has this process listen
        with interruption.heeding(), observing(run, world, payload["observer"]) as observer:
            carried(run, world=world, observer=observer, wished=asked_to_stop)
    except TrainingError as error:                                 # raised on all ranks at once
        return str(error)
    return None


def asked_to_stop() -> bool:
    """SIGTERM to this worker, or Ray's word that a machine of the group goes; each worker asks equally often."""
    import ray.train

    return ray.train.get_preemption_info() is not None or interruption.wished()


@contextlib.contextmanager
def observing(run: Run[TrainingConfig], world: World, other: Observer | None = None) -> Iterator[Observer]:
    """Progress on stderr, or `other` in its place; on rank 0 of a run that is tracked MLflow too."""
    progress = other or ProgressObserver(steps=run.config.loop.steps)
    if world.rank or run.tracking_id is None:
        yield progress
    else:
        with tracking.observing(run) as tracked:
            yield Observers(progress, tracked)


def wants_gpu(where: PlaceConfig, resources: Mapping[str, float]) -> bool:
    """Whether each worker takes a GPU: as asked, or where the cluster has one for each.

    Raises ConfigError on a cluster that grows, whose present GPUs say nothing.
    """
    if where.device == "auto" and autoscales():
        raise ConfigError("device=auto: this cluster grows on demand, so what it has now does not tell; "
                          "say --device gpu (or cpu)")
    return where.device == "gpu" or (where.device == "auto" and resources.get("GPU", 0) >= where.workers)


def check_fits(where: PlaceConfig, resources: Mapping[str, float], *, gpu: bool) -> float:
    """CPUs a worker; raises ConfigError where the cluster could never place the workers, which would wait for ever."""
    cpus = 1.0
    for name, needed in (("CPU", cpus * where.workers), ("GPU", float(where.workers if gpu else 0))):
        if needed > resources.get(name, 0) and not autoscales():
            raise ConfigError(f"workers={where.workers}: they need {needed:g} {name}; the cluster has "
                              f"{resources.get(name, 0):g}; use fewer --workers or a larger cluster")
    return cpus


def first_cause(error: BaseException) -> str:
    """The message of the project's own error inside Ray's, else the last line of Ray's."""
    text = str(error)
    for line in reversed(text.splitlines()):
        if line.startswith("infd.errors."):
            return line.split(": ", 1)[1]
    return text.strip().splitlines()[-1] if text.strip() else type(error).__name__
