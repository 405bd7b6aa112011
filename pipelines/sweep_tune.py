"""A sweep on Ray Tune: Tune places the trials, lets so many run at once, and ends those that its scheduler ends.

Tune's own state is never read again: which trials are left, and how far each is, the trials' folders tell. A trial is a
function on an actor of no CPU, which drives the same TorchTrainer as the job of its stage; the figures come over the board,
at checkpoints, so that a trial that is ended early has the checkpoint it was judged by.
"""

import logging
import os
import threading
import time
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

from infd import checkpoint, lease, storage
from infd.config import DiffusionTrainingConfig, LatentRunConfig, PlaceConfig, RunConfig
from infd.config_form import flat, unflat
from infd.errors import TrainingError
from pipelines import logs, sweep_trials, tracking, train
from pipelines.sweep_board import Board, BoardObserver, Driver
from pipelines.sweep_plan import KINDS, Plan, TrainingConfig, Trial
from pipelines.sweep_supply import Supply
from pipelines.sweep_table import Table

SETTINGS = {"TUNE_DISABLE_SIGINT_HANDLER": "1", "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1", "RAY_AIR_NEW_OUTPUT": "0"}
"""Ctrl+C ends the sweep; Tune writes no log files beside its state, and no tables."""
for name, value in SETTINGS.items():
    os.environ.setdefault(name, value)

import ray  # noqa: E402
from ray import tune  # noqa: E402    reads these variables
from ray.exceptions import GetTimeoutError, RayActorError  # noqa: E402
from ray.tune import Callback  # noqa: E402
from ray.tune.execution.placement_groups import PlacementGroupFactory  # noqa: E402
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler  # noqa: E402
from ray.tune.search import Searcher  # noqa: E402
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy  # noqa: E402

from pipelines.ray_groups import release_orphans  # noqa: E402

logger = logging.getLogger(__name__)

POLL_S = 0.5
DEATH_S = 30.0
"""For how long a driver that was killed, and its trainer, are waited for."""
LOUD = ("ray.tune.execution.tune_controller", "ray.tune.tune", "ray.tune.analysis.experiment_analysis")
"""Loggers of Tune that write tracebacks of trials, and of log files that are not written; the table says what is wrong."""
DRIVER: dict[str, int | float] = {"memory": 1 << 20}
"""What a trial's driver claims: a bundle must not be empty, and a share of a CPU would leave workers none on small machines."""
WHERE: dict[str, type[RunConfig] | type[LatentRunConfig]] = {"ae": RunConfig, "ldm": LatentRunConfig}


def answer(question: Any) -> Any:
    """Of the board."""
    return ray.get(question)


# ---------------------------------------------------------------- in the trial's actor


def trial_function(told: dict[str, Any]) -> None:
    """What Tune runs of a trial: train in a thread, and report the judged figures here; the last once training is over.

    An error of training is told to the board as text, and raised.
    """
    logs.to_stderr()
    logging.getLogger().setLevel(logging.WARNING)
    board, number = ray.get_actor(told["board"]), told["number"]
    task = answer(board.begin.remote(number, Driver(ray.get_runtime_context().current_actor, lease.holder())))
    if task is None:                                               # the sweep is being stopped
        return
    config = unflat(KINDS[task["stage"]], task["config"])
    training = Training(task, config, train.Part(parent=task["parent"], observer=BoardObserver(board, number)))
    training.start()
    waiting: dict[str, float] | None = None
    try:
        while training.is_alive():
            training.join(POLL_S)
            for step, metrics in answer(board.taken.remote(number)):
                waiting = row_of(step, metrics, task["metric"], config) or waiting
            if waiting and waiting["step"] < config.loop.steps:
                tune.report(waiting)
                waiting = None
        if training.error is not None:
            raise training.error
    except BaseException as error:
        answer(board.failed.remote(number, text_of(error)))
        raise
    if waiting:
        tune.report(waiting)


class Training(threading.Thread):
    """train_autoencoder or train_diffusion of one trial."""

    def __init__(self, task: Mapping[str, Any], config: TrainingConfig, part: train.Part) -> None:
        super().__init__(name=f"trial {task['number']}", daemon=True)
        self.task, self.config, self.part = task, config, part
        self.error: BaseException | None = None

    def run(self) -> None:
        where = unflat(WHERE[self.task["stage"]], self.task["where"])
        try:
            if isinstance(self.config, DiffusionTrainingConfig):
                train.train_diffusion(self.task["preset"], self.config, cast(LatentRunConfig, where), part=self.part)
            else:
                train.train_autoencoder(self.task["preset"], self.config, cast(RunConfig, where), part=self.part)
        except BaseException as error:                             # raised again by the thread that reports
            self.error = error


def row_of(step: int, metrics: Mapping[str, float], metric: str, config: TrainingConfig) -> dict[str, float] | None:
    """What Tune is told of a checkpoint; None where it has no figure of its own step.

    Raises TrainingError where it should have one: there are others of its kind, or training is over.
    """
    if sweep_trials.judged(step, dict(metrics), metric, config):
        return {"step": step, metric: metrics[metric]}
    kind = metric.partition("/")[0]
    if metric not in metrics and sweep_trials.due(step, metric, config) and (
            step == config.loop.steps or any(name.startswith(f"{kind}/") for name in metrics)):
        raise TrainingError(f"metric={metric}: not among the figures of step {step} ({', '.join(sorted(metrics))}); "
                            "take one of these as --metric")
    return None


def text_of(error: BaseException) -> str:
    """One line."""
    return " ".join(train.first_cause(error).split()) if str(error) else type(error).__name__


# ---------------------------------------------------------------- in the sweep's process


class Numbered(Searcher):
    """Hands Tune the trials of the supply, and tells the supply what became of them."""

    def __init__(self, running: "Running") -> None:
        super().__init__(metric=running.plan.sweep.metric, mode=running.plan.sweep.direction)
        self.running = running
        self.numbers: dict[str, Trial] = {}

    def suggest(self, trial_id: str) -> Any:
        trial = self.running.next()
        if trial is None:
            return Searcher.FINISHED
        self.numbers[trial_id] = trial
        return {"number": trial.number, "board": self.running.board_name}

    def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None:
        self.running.ended(self.numbers.pop(trial_id), error=error)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the folders of the trials are the memory."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing."""


def named(number: int) -> Any:
    """What ASHA knows a trial by: its number in the sweep, which lasts; Tune names it anew each time."""
    return SimpleNamespace(trial_id=f"trial-{number}", config={"number": number})


class Halving(ASHAScheduler):
    """ASHA that knows the figures of trials before the sweep was interrupted.

    Law: a sweep that goes on compares a trial with all that came to its rung before.
    """

    def __init__(self, plan: Plan, past: Iterable[Trial]) -> None:
        sweep = plan.sweep
        steps = plan.config.loop.steps
        super().__init__(time_attr="step", metric=sweep.metric, mode=sweep.direction, max_t=steps,
                         grace_period=grace(plan), reduction_factor=sweep.reduction, stop_last_trials=False)
        for trial in past:
            gone = named(trial.number)
            super().on_trial_add(cast(Any, None), gone)
            for step, value in sweep_trials.history(trial):
                super().on_trial_result(cast(Any, None), gone, {"step": step, sweep.metric: value})

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """A trial that goes on has its figures from before already; they were judged then."""
        mine = named(trial.config["number"])
        if mine.trial_id not in self._trial_info:
            super().on_trial_add(tune_controller, mine)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict) -> str:
        said = super().on_trial_result(tune_controller, named(trial.config["number"]), result)
        return TrialScheduler.CONTINUE if result.get("step", 0) >= self._max_t else said      # it is over anyway

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict) -> None:
        """Its last figure was taken in when it came."""

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        """Its figures stay."""


def grace(plan: Plan) -> int:
    """Steps before which no trial ends."""
    every = sweep_trials.rhythm(plan.sweep.metric, plan.config)[1]
    return plan.sweep.grace_steps or max(every, plan.config.loop.steps // 9)


class Watching(Callback):
    """Keeps what Tune tells: the history of every trial, and the table."""

    def __init__(self, running: "Running") -> None:
        self.running = running

    def on_step_end(self, iteration: int, trials: list, **info: Any) -> None:
        self.running.look()

    def on_trial_result(self, iteration: int, trials: list, trial: Any, result: dict, **info: Any) -> None:
        number, metric = trial.config["number"], self.running.plan.sweep.metric
        if metric in result:
            self.running.judge(number, int(result["step"]), float(result[metric]))


class Running:
    """A sweep while it runs: what comes next, the board, what is shown."""

    def __init__(self, plan: Plan, where: PlaceConfig, supply: Supply, table: Table, *, parent: str | None) -> None:
        self.plan, self.where, self.supply, self.table, self.parent = plan, where, supply, table, parent
        self.board_name = f"sweep-{uuid.uuid4().hex[:12]}"
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)  # lost with us alone
        self.board: Any = ray.remote(num_cpus=0)(Board).options(name=self.board_name, scheduling_strategy=here).remote()
        self.trials: dict[int, Trial] = {}
        self.live: set[int] = set()
        """Trials that have begun and are not over."""
        self.looked = 0.0

    def __reduce__(self) -> tuple[type, tuple[str]]:
        """Tune pickles all that it is given, to restore it, which is never done: of this there is nothing to keep."""
        return str, ("a sweep's state lies in the folders of its trials",)

    def next(self) -> Trial | None:
        """The trial that starts now."""
        trial = self.supply.next()
        if trial is not None:
            self.begin(trial)
        return trial

    def begin(self, trial: Trial) -> None:
        self.trials[trial.number] = trial
        self.live.add(trial.number)
        source = {"latents": (self.plan.latents or {}).get("address", "")} if self.plan.stage == "ldm" else {
            "dataset": self.plan.snapshot}
        where = replace(self.where, run=trial.run, start_from=self.plan.start_from, **source)
        sweep_trials.begin(trial)
        answer(self.board.expect.remote(trial.number, {
            "number": trial.number, "stage": self.plan.stage, "preset": self.plan.preset, "config": flat(trial.config),
            "where": flat(where), "metric": self.plan.sweep.metric, "parent": self.parent}))
        self.table.starts(trial)

    def judge(self, number: int, step: int, value: float) -> None:
        sweep_trials.remember(self.trials[number], step, value)
        self.table.judged(number, step, value)

    def ended(self, trial: Trial, *, error: bool) -> None:
        """Write down why it ended, where it did not come to its last step; tell the supply."""
        self.live.discard(trial.number)
        newest = checkpoint.newest(trial.run)
        whole = newest is not None and newest.step >= trial.steps
        if error and not whole:
            text = answer(self.board.error.remote(trial.number)) or "its process died; see the logs of the Ray cluster"
            sweep_trials.end(trial, "failed", error=text)
        elif not whole:
            sweep_trials.end(trial, "stopped")
            tracking.finish(tracking.known_id(trial.run), ok=True)  # its driver was ended before it could
        fate = sweep_trials.fate(trial, self.plan.sweep.metric)
        self.table.ends(fate)
        self.supply.over(fate)

    def look(self) -> None:
        """Show how far the trials are; release what those that were ended early had."""
        if time.monotonic() - self.looked >= POLL_S:
            self.looked = time.monotonic()
            self.table.show(answer(self.board.now.remote()))
            release_orphans()

    def close(self) -> None:
        """End what still runs, with its workers, whom Ray ends with their driver: no trial begins any more, leases are given
        back, and MLflow's runs of interrupted trials are closed."""
        drivers = answer(self.board.close.remote())
        for driver in drivers.values():
            ray.kill(driver.actor)
        for number, driver in drivers.items():
            if has_ended(driver.actor):
                lease.release(lease.driver_uri(self.trials[number].run), driver.holder)
        ray.kill(self.board)
        end = time.monotonic() + DEATH_S
        while release_orphans() and time.monotonic() < end:
            time.sleep(0.05)
        for number in sorted(self.live):
            tracking.finish(tracking.known_id(self.trials[number].run), ok=False)


def has_ended(actor: Any) -> bool:
    """Whether an actor that was killed ends within DEATH_S."""
    end = time.monotonic() + DEATH_S
    while (left := end - time.monotonic()) > 0:
        try:
            ray.get(actor.__ray_ready__.remote(), timeout=left)    # it may answer before it hears of its death
        except RayActorError:
            return True
        except GetTimeoutError:
            break
        time.sleep(0.05)
    return False


def run_on_tune(plan: Plan, where: PlaceConfig, supply: Supply, table: Table, *, concurrent: int, parent: str | None) -> None:
    """Run what the supply has, `concurrent` trials at once, in a connected cluster; afterwards all of it is over."""
    for name in LOUD:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    running = Running(plan, where, supply, table, parent=parent)
    place = storage.join(plan.uri, "ray")
    filesystem, path = storage.filesystem(place)
    tuner = tune.Tuner(
        tune.with_resources(trial_function, PlacementGroupFactory([DRIVER])),
        tune_config=tune.TuneConfig(search_alg=Numbered(running), scheduler=scheduler_of(plan), num_samples=plan.count,
                                    max_concurrent_trials=concurrent, reuse_actors=False),
        run_config=tune.RunConfig(name=time.strftime("%Y%m%d-%H%M%S-") + uuid.uuid4().hex[:6], storage_path=path,
                                  storage_filesystem=filesystem, verbose=0, callbacks=[Watching(running)]))
    try:
        with table.below_the_log():
            tuner.fit()
    finally:
        running.close()
    storage.delete_prefix(place)                                   # Tune's own state, of interrupted attempts too


def scheduler_of(plan: Plan) -> TrialScheduler:
    """None lets all trials come to their end."""
    if plan.sweep.scheduler == "none":
        return FIFOScheduler()
    trials = sweep_trials.known(plan)
    return Halving(plan, trials)
