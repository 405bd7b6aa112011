"""A sweep: many trainings of one preset that differ in a few fields and in the seed, judged by one figure.

    SWEEP/plan.json          what is tried; written once, by whoever comes first
    SWEEP/trials/NNN/…       a training run each (pipelines/sweep_trials.py)
    SWEEP/sweep.json, .md    what came of it (pipelines/sweep_summary.py)
    SWEEP/report/…           the trials side by side (pipelines/sweep_report.py)

sweep_plan.py says what is tried, sweep_supply.py in which order, sweep_tune.py runs it on Ray Tune. Killed anywhere, the same
command goes on: trials that are over stay as they are, the others go on from their own checkpoints.
"""

import contextlib
import json
import logging
import shlex
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, cast

from infd import storage, weights
from infd.config import AutoencoderTrainingConfig, DiffusionTrainingConfig, LatentRunConfig, PlaceConfig, RunConfig
from infd.data.latents import Latents, open_latents
from infd.data.snapshot import Manifest, open_dataset, split_address
from infd.errors import CheckpointError, ConfigError, Interrupted, PreconditionFailed, WeightsError
from infd.lease import driver_uri, held
from infd.training.autoencoder_run import required_weights
from infd.training.diffusion_run import fitted
from infd.training.evaluation import networks_of
from infd.training.run import check_batch
from pipelines import sweep_conditions, sweep_report, sweep_summary, sweep_tracking, sweep_trials, tracking, train
from pipelines.cluster import autoscales, connect
from pipelines.sweep_plan import Plan, SweepConfig, TrainingConfig, Trial, command, default_uri, differences
from pipelines.sweep_summary import Summary
from pipelines.sweep_table import Table

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What a command asks for."""

    stage: Literal["ae", "ldm"]
    preset: str
    config: TrainingConfig
    where: PlaceConfig
    """A RunConfig or LatentRunConfig; its `run` stays empty, because each trial has its own."""
    vary: Sequence[str] = ()
    seeds: Sequence[int] = ()
    """Empty: the preset's own."""
    sweep: SweepConfig = SweepConfig()
    uri: str = ""
    """Empty: DATASET/sweeps/PRESET-HASH."""
    concurrent: int = 0
    """Trials at once; 0: as many as the cluster has room for."""


def run_sweep(wish: Wish) -> Summary:
    """Run the sweep, or what is left of it.

    Raises ConfigError before anything starts where a trial could not, CheckpointError where another sweep is at its address,
    Interrupted after SIGTERM.
    """
    plan, manifest = planned(wish)
    check(plan, wish.where, manifest)
    if said := sweep_conditions.caution(plan, plan.listed()):
        logger.warning("sweep %s: %s", plan.uri, said)
    plan = opened(plan)
    with ended_by_sigterm(plan.uri) as listen, held(driver_uri(plan.uri), what=f"sweep {plan.uri}"):
        fates = sweep_trials.fates(sweep_trials.known(plan), plan.sweep.metric)
        over = sum(fate.over for fate in fates)
        logger.info("sweep %s: %d trials, %d of them over already", plan.uri, plan.count, over)
        if over < plan.count:
            run_trials(plan, wish, fates, listen)
            fates = sweep_trials.fates(sweep_trials.known(plan), plan.sweep.metric)
        sweep_trials.require_figures(fates, plan)
        found = sweep_summary.summary(plan, fates)
        sweep_summary.write(found)
        return reported(found)


def reported(found: Summary) -> Summary:
    """Write the report over the trials that have a checkpoint; tell MLflow what the sweep came to."""
    found = replace(found, page=sweep_report.write(found))
    sweep_tracking.track(found)
    return found


def show(wish: Wish, number: int) -> str:
    """The command that trains trial `number` by hand. Raises ConfigError where the sweep has no such trial."""
    plan, _ = planned(wish)
    require_same(plan)
    found = next((trial for trial in sweep_trials.known(plan) if trial.number == number), None)
    if found is None:
        more = "; optuna chooses its trials while the sweep runs" if plan.sweep.search == "optuna" else ""
        raise ConfigError(f"show={number}: no such trial; the sweep {plan.uri} has 0 to {plan.count - 1}{more}")
    return shlex.join(command(found, plan, wish.where))


# ---------------------------------------------------------------- before it starts


def planned(wish: Wish) -> tuple[Plan, Manifest]:
    """The plan of a command, its data pinned, and their manifest.

    The newest snapshot is that of the first time: a sweep that is there keeps its own.
    """
    where = wish.where
    if where.run:
        raise ConfigError(f"run={where.run}: each trial has a run of its own, SWEEP/trials/NNN; name the sweep with --sweep")
    if not where.ray:
        raise ConfigError("ray=False: a sweep runs on Ray; leave --no-ray out")
    source = latents_of(where) if isinstance(where, LatentRunConfig) else dataset_of(cast(RunConfig, where))
    latents = {"address": source.uri, "sha256": source.sha256} if isinstance(source, Latents) else None
    dataset = source.info["snapshot"] if isinstance(source, Latents) else source
    seeds = tuple(wish.seeds) or (wish.config.loop.seed,)
    start_from = storage.absolute(where.start_from) if where.start_from else ""
    told = {"vary": list(wish.vary), "seeds": list(seeds), "sweep": asdict(wish.sweep.training), "start_from": start_from,
            "latents": latents}
    uri = storage.absolute(wish.uri) if wish.uri else default_uri(
        split_address(dataset)[0], wish.stage, wish.preset, wish.config, told)
    data = source if isinstance(source, Latents) else open_dataset(kept(uri, source))
    plan = Plan(uri=uri.rstrip("/"), stage=wish.stage, preset=wish.preset, config=wish.config, vary=tuple(wish.vary),
                seeds=seeds, sweep=wish.sweep, snapshot=dataset if isinstance(data, Latents) else data.snapshot_uri,
                start_from=start_from, latents=latents)
    return plan, data.manifest


def latents_of(where: LatentRunConfig) -> Latents:
    if not where.latents:
        raise ConfigError("latents: missing; give --latents with the address that jobs/encode_latents.py printed")
    return open_latents(where.latents)


def dataset_of(where: RunConfig) -> str:
    if not where.dataset:
        raise ConfigError("dataset: missing; give --dataset s3://bucket/datasets/NAME or a folder")
    return storage.absolute(where.dataset)


def kept(uri: str, dataset: str) -> str:
    """The snapshot of `dataset` that the sweep at `uri` began with; `dataset` itself where none has begun, or of another."""
    before = recorded(uri)
    return before["snapshot"] if before and dataset == split_address(before["snapshot"])[0] else dataset


def check(plan: Plan, where: PlaceConfig, manifest: Manifest) -> None:
    """Raise an InfdError where a trial could not be trained, or not judged."""
    trials = plan.listed() or corners(plan)
    latents = open_latents(plan.latents["address"]) if plan.latents else None
    for trial in trials:
        config = trial.config
        try:
            check_batch(config.loop, where.workers)
            if isinstance(config, DiffusionTrainingConfig) and latents is not None:
                fitted(config, latents)
            if isinstance(config, AutoencoderTrainingConfig) and config.freeze and not plan.start_from:
                raise ConfigError(f"freeze={' '.join(config.freeze)}: they would keep random weights; give --start-from")
        except ConfigError as error:
            raise ConfigError(f"trial {trial.number} ({trial.text}): {error}") from error
    configs = [trial.config for trial in trials if isinstance(trial.config, AutoencoderTrainingConfig)]
    for config in {(config.loss.lpips > 0, config.loss.lpips_net): config for config in configs}.values():
        required_weights(config)
    for trial in trials:
        name, every = sweep_trials.rhythm(plan.sweep.metric, trial.config)
        if not every:
            raise ConfigError(f"metric={plan.sweep.metric}: trial {trial.number} ({trial.text}) makes none; expected one to "
                              f"judge by; give --{name} STEPS, or take --metric val/loss")
        if instead := sweep_trials.unknown(plan.sweep.metric, trial.config):
            raise ConfigError(f"metric={plan.sweep.metric}: no trial makes it; {instead}")
        require_judge(plan.sweep.metric, trial)
    if plan.sweep.metric.startswith(("val/", "eval/")) and not (manifest.split == 1).any():
        raise ConfigError(f"metric={plan.sweep.metric}: {plan.snapshot} has no photo in its val split to judge by; ingest with "
                          "--val-fraction, or take --metric train/loss")
    check_rungs(plan, trials)
    sweep_conditions.check(plan, trials)


def require_judge(metric: str, trial: Trial) -> None:
    """Raise an InfdError where the trial's checkpoint `best` would have no figure of its own by this metric."""
    config, every = trial.config, trial.config.evaluation.every
    if metric.startswith("eval/"):
        for network in networks_of(metric, config.evaluation):
            if weights.check(network).state != "ok":
                raise WeightsError(f"metric={metric}: trial {trial.number} ({trial.text}) needs the weights {network}, which "
                                   f"are not at hand; {weights.how_to_get(network)}, or take --metric val/loss")
    elif metric.startswith("val/") and every and every % config.loop.validate_every:
        raise ConfigError(f"metric={metric}: trial {trial.number} ({trial.text}) takes as `best` one of its evaluations, every "
                          f"{every} steps, and validates every {config.loop.validate_every}; make evaluation.every a multiple "
                          "of loop.validate_every, or take an eval/… metric")


def corners(plan: Plan) -> list[Trial]:
    """For optuna: a trial for each end of every range and each choice, with the preset's own values in the other fields.

    One that does not go together with those is left out: it may with others.
    """
    found = []
    for axis in plan.axes:
        for value in axis.choices or (axis.rounded(axis.low), axis.rounded(axis.high)):
            with contextlib.suppress(ConfigError):
                found.append(plan.trial(0, {axis.name: value}))
    if not found:
        raise ConfigError(f"--vary {plan.vary[0]}: no value of it goes with the preset; see its rules in the job's --help")
    return found


def check_rungs(plan: Plan, trials: Sequence[Trial]) -> None:
    """Raise ConfigError where ASHA would judge no trial before its end."""
    if plan.sweep.scheduler != "asha":
        return
    name, every = sweep_trials.rhythm(plan.sweep.metric, plan.config)
    first, steps = max(every, plan.sweep.grace_steps), min(trial.steps for trial in trials)
    if first >= steps:
        raise ConfigError(f"scheduler=asha: trials of {steps} steps are first judged at step {first}; expected before "
                          f"their end; lower --{name.replace('_', '-')} or --grace-steps")


def recorded(uri: str) -> dict[str, Any] | None:
    """plan.json of the sweep at `uri`."""
    place = storage.join(uri, "plan.json")
    return json.loads(storage.read_bytes(place)) if storage.exists(place) else None


def opened(plan: Plan) -> Plan:
    """Write the plan where none is; else require that it is this one."""
    try:
        storage.put_if_absent(storage.join(plan.uri, "plan.json"), json.dumps(plan.record(), indent=1, sort_keys=True).encode())
    except PreconditionFailed:
        require_same(plan)
    return plan


def require_same(plan: Plan) -> None:
    """Raise CheckpointError naming what differs, where another sweep is at the plan's address."""
    before = recorded(plan.uri)
    if before is not None and (changes := differences(Plan.of(plan.uri, before), plan)):
        raise CheckpointError(f"sweep {plan.uri}: it is another ({', '.join(changes)}); a sweep goes on with its own command; "
                              "name another --sweep, or take the old values")


# ---------------------------------------------------------------- while it runs


def run_trials(plan: Plan, wish: Wish, fates: Sequence[sweep_trials.Fate], listen: Callable[[], object]) -> None:
    """On the cluster, below one MLflow run. `listen` takes SIGTERM back from Ray."""
    table = Table(fates, metric=plan.sweep.metric, total=plan.count)
    with connect(env=train.worker_env(), log_to_driver=not table.live):
        listen()
        import ray

        from pipelines.sweep_supply import supply_of
        from pipelines.sweep_tune import run_on_tune

        concurrent = room(wish.where, ray.cluster_resources(), wish.concurrent)
        record = {"vary": " ".join(plan.vary), "seeds": list(plan.seeds), "preset": plan.preset, "snapshot": plan.snapshot,
                  "sweep": plan.uri, **asdict(plan.sweep)}
        parent = tracking.opened(plan.uri, wish.where.experiment, record)
        ok = False
        try:
            run_on_tune(plan, wish.where, supply_of(plan), table, concurrent=concurrent, parent=parent)
            ok = True
        finally:
            tracking.finish(parent, ok=ok)


def room(where: PlaceConfig, resources: Mapping[str, float], wished: int) -> int:
    """How many trials run at once. Raises ConfigError for more than have room: they would wait for each other."""
    gpu = train.wants_gpu(where, resources)
    cpus = train.check_fits(where, resources, gpu=gpu)
    if autoscales():
        return wished or 1
    most = int(resources.get("CPU", 0) // (cpus * where.workers))
    if gpu:
        most = min(most, int(resources.get("GPU", 0) // where.workers))
    if wished > most:
        raise ConfigError(f"concurrent={wished}: the cluster has room for {most} trials of {where.workers} "
                          f"worker{'s' * (where.workers > 1)} at once; use at most that, or a larger cluster")
    return wished or most


@contextlib.contextmanager
def ended_by_sigterm(uri: str) -> Iterator[Callable[[], object]]:
    """Inside the block SIGTERM ends the sweep with all its trials, in order: Interrupted. In the main thread alone.

    It arrives as KeyboardInterrupt, which no `except Exception` on the way keeps; once, for launchers send several. Ray takes
    the signal when it connects, and would exit: what the block is given takes it back.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    asked = threading.Event()

    def heard(number: int, frame: object) -> None:
        if not asked.is_set():
            asked.set()
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, heard)
    try:
        yield lambda: signal.signal(signal.SIGTERM, heard)
    except (KeyboardInterrupt, SystemExit) as error:
        if asked.is_set() or (isinstance(error, SystemExit) and error.code == signal.SIGTERM):    # as Ray has it
            raise Interrupted(f"sweep {uri}: asked to stop; its trials keep their checkpoints; the same command goes on"
                              ) from error
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
