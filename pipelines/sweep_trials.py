"""What became of a sweep's trials, as their own folders tell; neither Tune's state nor any pickle is read.

    SWEEP/trials/007/run.json, checkpoints/…   the run of the trial (infd/training/run.py)
                     values.json               what was chosen for it; optuna goes on from these
                     history.json              [[step, figure], …] at the checkpoints that were judged
                     outcome.json              why it ended short of its last step: stopped by the scheduler, or failed
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Literal

from infd import checkpoint, storage
from infd.checkpoint import Checkpoint
from infd.config import AutoencoderTrainingConfig
from infd.errors import ConfigError, InfdError
from infd.training.evaluation import sample_figures
from infd.training.loop import Metrics
from pipelines.sweep_plan import Plan, TrainingConfig, Trial, Values

State = Literal["finished", "stopped", "failed", "unfinished"]
OVER: tuple[State, ...] = ("finished", "stopped")
"""States of trials that the same command does not start again."""
HISTORY, OUTCOME, VALUES = "history.json", "outcome.json", "values.json"


@dataclass(frozen=True, kw_only=True)
class Fate:
    """What became of a trial. `figure`: the sweep's metric at the checkpoint `best`, as training chose it, the one that a
    person would take; `last` at the newest one."""

    trial: Trial
    state: State
    step: int = 0
    figure: float | None = None
    last: float | None = None
    checkpoint: str = ""
    error: str = ""

    @property
    def over(self) -> bool:
        return self.state in OVER


def fate(trial: Trial, metric: str) -> Fate:
    """As the folder tells: finished at the last step, whoever trained it; else as outcome.json says; else unfinished."""
    try:
        newest = checkpoint.newest(trial.run)
        best = best_of(trial.run) or newest
        told = read(trial, OUTCOME) or {}
    except InfdError as error:
        return Fate(trial=trial, state="failed", error=str(error))
    step = newest.step if newest else 0
    state: State = "finished" if step >= trial.steps else told.get("state", "unfinished")
    return Fate(trial=trial, state=state, step=step, figure=figure(best, metric), last=figure(newest, metric),
                checkpoint=best.uri if best else "", error=told.get("error", "") if state == "failed" else "")


def best_of(run: str) -> Checkpoint | None:
    step = checkpoint.pointed(run, "best")
    uri = checkpoint.step_uri(run, step) if step is not None else ""
    return checkpoint.load(uri) if uri and checkpoint.is_whole(uri) else None


def figure(found: Checkpoint | None, metric: str) -> float | None:
    value = found.meta["metrics"].get(metric) if found else None
    return None if value is None else float(value)


def rhythm(metric: str, config: TrainingConfig) -> tuple[str, int]:
    """The field that tells at which steps a metric is made, and its value; 0: never."""
    if metric.startswith("eval/"):
        return "evaluation.every", config.evaluation.every
    name = "validate_every" if metric.startswith("val/") else "checkpoint_every"
    return f"loop.{name}", getattr(config.loop, name)


def unknown(metric: str, config: TrainingConfig) -> str:
    """Of a metric val/… or eval/… that no training with this config makes what to take instead; empty where it may be made.

    The names are those of `validate` of the stages; stage one tells them by scale too, NAME_r_to_END.
    """
    if isinstance(config, AutoencoderTrainingConfig):
        known = ["val/loss", "val/l1", "val/psnr", *(["val/lpips"] if config.loss.lpips > 0 else [])]
        known += [f"eval/{name}.{side}" for name in config.evaluation.metrics for side in config.evaluation.sizes]
        metric, heads = metric.partition("_r_to_")[0], ("val/", "eval/")
    else:
        judged = config.evaluation
        known, heads = ["val/loss", *(sample_figures(judged, judged.network) if judged.every else [])], ("val/", "eval/")
    if not metric.startswith(heads) or metric in known:
        return ""
    near = get_close_matches(metric, known, n=1)
    return f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"


def due(step: int, metric: str, config: TrainingConfig) -> bool:
    """Whether the metric is made at this step."""
    every = rhythm(metric, config)[1]
    return bool(every) and (step % every == 0 or step == config.loop.steps)


def judged(step: int, metrics: Metrics, metric: str, config: TrainingConfig) -> bool:
    """Whether a checkpoint has a figure of its own step: one of validation is carried along by the checkpoints between."""
    return metric in metrics and due(step, metric, config)


# ---------------------------------------------------------------- the small files beside the run


def place(trial: Trial, name: str) -> str:
    return storage.join(trial.run, name)


def read(trial: Trial, name: str) -> Any:
    """None where the file is not there."""
    uri = place(trial, name)
    return json.loads(storage.read_bytes(uri)) if storage.exists(uri) else None


def write(trial: Trial, name: str, content: object) -> None:
    storage.put_atomic(place(trial, name), json.dumps(content, indent=1).encode())


def history(trial: Trial) -> list[tuple[int, float]]:
    """(step, figure), by step."""
    return [(int(step), float(value)) for step, value in read(trial, HISTORY) or []]


def remember(trial: Trial, step: int, value: float) -> None:
    """Add to the history; a step that came again counts as it was the second time."""
    write(trial, HISTORY, sorted({**dict(history(trial)), step: value}.items()))


def begin(trial: Trial) -> None:
    """Before it starts, for the first time or again."""
    write(trial, VALUES, {"number": trial.number, "seed": trial.seed, "values": trial.values})
    if storage.exists(place(trial, OUTCOME)):
        storage.delete(place(trial, OUTCOME))


def end(trial: Trial, state: State, *, error: str = "") -> None:
    """Why it ended short of its last step."""
    write(trial, OUTCOME, {"state": state, **({"error": error} if error else {})})


def chosen(plan: Plan) -> dict[int, Values]:
    """Point -> values, of all points of which a trial has begun."""
    found: dict[int, Values] = {}
    for info in storage.list_objects(storage.join(plan.uri, "trials")):
        if info.uri.endswith(f"/{VALUES}"):
            told = json.loads(storage.read_bytes(info.uri))
            found[told["number"] // len(plan.seeds)] = told["values"]
    return found


def known(plan: Plan) -> list[Trial]:
    """All trials of the plan; of optuna's those that have been chosen so far."""
    if plan.sweep.search != "optuna":
        return plan.listed()
    points = sorted(chosen(plan).items())
    return [trial for point, values in points for trial in plan.point(point, values)]


def require_figures(found: Sequence[Fate], plan: Plan) -> None:
    """Raise ConfigError where trials are over and none of them has the metric: it is not one of their figures."""
    over = [fate for fate in found if fate.over and fate.checkpoint]
    if over and all(fate.figure is None for fate in over):
        names = sorted(checkpoint.load(over[0].checkpoint).meta["metrics"])
        how = "" if plan.sweep.steers else " with the same command, which trains none of them again"
        raise ConfigError(f"metric={plan.sweep.metric}: none of the {len(over)} trials that are over has it; expected one of "
                          f"{', '.join(names)}; say another --metric{how}")


def fates(trials: Iterable[Trial], metric: str) -> list[Fate]:
    return [fate(trial, metric) for trial in trials]
