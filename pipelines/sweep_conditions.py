"""Which trials of a sweep its metric compares: those between which nothing differs that the metric itself is made with.

A sweep over loss.l1 changes what val/loss is the sum of, one over crop.r_max which crops it is over: its values then tell
nothing of which trial is better. pipelines/report_tables.py knows what a validation metric depends on.
"""

import json
from collections.abc import Iterable, Sequence

from infd.config import AutoencoderTrainingConfig
from infd.config_form import flat
from infd.errors import ConfigError
from pipelines.report_tables import validated_with
from pipelines.sweep_plan import Plan, TrainingConfig, Trial, Values

APART = ("evaluation.every", "evaluation.metrics", "crop.lowres_px")
"""Fields of these groups that say when and of what figures are made, not how."""


def made_with(metric: str, config: TrainingConfig) -> Values:
    """The settings that the metric depends on besides the weights that it judges.

    An evaluation (eval/…) has photographs and sides of its own; a figure of training (train/…) is over the samples that
    the weights learn from, and a loss of all that it is the sum of.
    """
    settings = flat(config)
    if metric.startswith("val/"):
        return validated_with(settings, metric)
    if metric.startswith("eval/"):
        heads: tuple[str, ...] = ("evaluation.",)
    else:
        pixels = metric in ("train/psnr", "train/l1")
        heads = ("crop.", "flip", *(() if pixels else ("diffusion.", "loss.", "model.quantizer", "model.vq_")))
    return {name: value for name, value in settings.items() if name.startswith(heads) and name not in APART}


def fields(plan: Plan, trials: Iterable[Trial], metric: str = "") -> tuple[str, ...]:
    """The fields of --vary that the metric depends on, the plan's own where none is named; () where it compares all."""
    made = [made_with(metric or plan.sweep.metric, trial.config) for trial in trials]
    return tuple(axis.name for axis in plan.axes
                 if len({json.dumps(one[axis.name]) for one in made if axis.name in one}) > 1)


def condition(trial: Trial, plan: Plan, names: Sequence[str]) -> Values:
    """The trial's values of those of the fields `names` that its metric depends on. Law: equal ones compare."""
    made = made_with(plan.sweep.metric, trial.config)
    return {name: trial.values[name] for name in names if name in made}


# ---------------------------------------------------------------- said


def caution(plan: Plan, trials: Sequence[Trial]) -> str:
    """What a person must know before taking figures of several trials for a ranking; empty where they are one."""
    names = fields(plan, trials)
    if not names:
        return ""
    many = len({json.dumps(condition(trial, plan, names)) for trial in trials})
    return (f"trials do not all compare by {plan.sweep.metric}, which depends on {' and '.join(names)}: its figures compare "
            f"within each of {many} conditions alone; to rank all, {remedy(plan, trials)}")


def remedy(plan: Plan, trials: Sequence[Trial]) -> str:
    """A metric that compares all trials, and what it costs."""
    config, psnr = plan.config, "train/psnr" if plan.sweep.metric.startswith("train/") else "val/psnr"
    if isinstance(config, AutoencoderTrainingConfig) and not fields(plan, trials, psnr):
        again = "" if plan.sweep.steers else ", which trains nothing again"
        return f"say --metric {psnr} with the same command{again}"
    example = f"eval/psnr.{config.evaluation.sizes[0]}" if isinstance(config, AutoencoderTrainingConfig) else "eval/kid…"
    steps = "" if config.evaluation.every else "--evaluation.every STEPS and "
    return f"say {steps}--metric with a figure that it makes, such as {example}"


def check(plan: Plan, trials: Sequence[Trial]) -> None:
    """Raise ConfigError where trials would be chosen, or ended early, by figures that do not compare."""
    names = fields(plan, trials)
    if not names or not plan.sweep.steers:
        return
    how = "search=optuna" if plan.sweep.search == "optuna" else "scheduler=asha"
    without = "--search grid or random" if plan.sweep.search == "optuna" else "no --scheduler"
    raise ConfigError(f"{how}: it goes by {plan.sweep.metric}, which depends on {' and '.join(names)}; expected a metric that "
                      f"compares all values of --vary; {remedy(plan, trials)}; or take {without}, which trains all of them to "
                      "their end and tells the best within each condition")
