"""Which trial comes next: of a list, or as optuna chooses it from those before."""

import logging
from collections import deque
from collections.abc import Iterable
from statistics import fmean
from typing import TYPE_CHECKING, Any, Protocol

from infd.errors import ConfigError
from pipelines import sweep_trials
from pipelines.sweep_plan import Axis, Plan, Trial, Values
from pipelines.sweep_trials import Fate

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

logger = logging.getLogger(__name__)

STARTUP = 10
"""Points that optuna draws at random before it learns; fewer in a small sweep, a third of its points."""
TRIES = 100
"""Points in a row that may be impossible."""


class Supply(Protocol):
    """Gives trials, and hears what became of them."""

    def next(self) -> Trial | None:
        """None: there is no more."""
        ...

    def over(self, fate: Fate) -> None: ...


class Listed:
    """Trials in their order."""

    def __init__(self, trials: Iterable[Trial]) -> None:
        self.left = deque(trials)

    def next(self) -> Trial | None:
        return self.left.popleft() if self.left else None

    def over(self, fate: Fate) -> None:
        """A list learns nothing."""


class Optuna:
    """TPE over the plan's axes; its memory are the trials' folders.

    A point counts by the mean figure over its seeds, once all of them are over. Law: what it chooses for point N depends on
    the plan, N, and what is known of the points before it.
    """

    def __init__(self, plan: Plan, known: Iterable[Fate]) -> None:
        import optuna  # a second, for those who want it

        self.optuna = optuna
        self.optuna.logging.set_verbosity(self.optuna.logging.WARNING)
        self.plan = plan
        self.points: dict[int, Values] = {}
        self.fates: dict[int, dict[int, Fate]] = {}
        self.left: deque[Trial] = deque()
        for fate in known:
            self.points[fate.trial.point] = fate.trial.values
            if fate.over:
                self.over(fate)
            else:
                self.left.append(fate.trial)

    def next(self) -> Trial | None:
        if not self.left and len(self.points) < self.plan.sweep.samples:
            self.left.extend(self.chosen(len(self.points)))
        return self.left.popleft() if self.left else None

    def over(self, fate: Fate) -> None:
        self.fates.setdefault(fate.trial.point, {})[fate.trial.number] = fate

    def chosen(self, point: int) -> list[Trial]:
        """The trials of a new point. Raises ConfigError where TRIES in a row are impossible."""
        startup = min(STARTUP, max(2, self.plan.sweep.samples // 3))
        error: ConfigError | None = None
        for attempt in range(TRIES):
            sampler = self.optuna.samplers.TPESampler(
                seed=(self.plan.sweep.search_seed * 1_000_003 + point * TRIES + attempt) % 2**32,
                n_startup_trials=startup, constant_liar=True)
            params = self.study(sampler).ask(self.spaces).params
            values: Values = {axis.name: axis.rounded(params[axis.name]) if axis.is_range else axis.choices[params[axis.name]]
                              for axis in self.plan.axes}
            try:
                trials = self.plan.point(point, values)
            except ConfigError as impossible:
                error = impossible
                continue
            self.points[point] = values
            return trials
        raise ConfigError(f"point {point}: {TRIES} choices in a row do not go together, the last because: {error}")

    def study(self, sampler: Any) -> Any:
        """All that is known, as optuna has it."""
        made = self.optuna.create_study(sampler=sampler,
                                        direction="minimize" if self.plan.sweep.direction == "min" else "maximize")
        for point, values in sorted(self.points.items()):
            params = {axis.name: values[axis.name] if axis.is_range else axis.choices.index(values[axis.name])
                      for axis in self.plan.axes}
            made.add_trial(self.optuna.trial.create_trial(params=params, distributions=self.spaces, **self.outcome(point)))
        return made

    def outcome(self, point: int) -> dict[str, Any]:
        """State and value of a point; one of which no trial gave a figure has failed."""
        states, known = self.optuna.trial.TrialState, self.fates.get(point, {})
        if len(known) < len(self.plan.seeds):
            return {"state": states.RUNNING}
        figures = [fate.figure for fate in known.values() if fate.over and fate.figure is not None]
        return {"state": states.COMPLETE, "value": fmean(figures)} if figures else {"state": states.FAIL}

    @property
    def spaces(self) -> dict[str, "BaseDistribution"]:
        return {axis.name: self.space(axis) for axis in self.plan.axes}

    def space(self, axis: Axis) -> "BaseDistribution":
        """Choices by their places, because optuna takes no lists."""
        of = self.optuna.distributions
        if not axis.is_range:
            return of.CategoricalDistribution(tuple(range(len(axis.choices))))
        if axis.whole:
            return of.IntDistribution(int(axis.low), int(axis.high), log=axis.log)
        return of.FloatDistribution(axis.low, axis.high, log=axis.log)


def supply_of(plan: Plan) -> Supply:
    """The trials that are not over, in the order of their numbers; then, with optuna, new ones."""
    fates = sweep_trials.fates(sweep_trials.known(plan), plan.sweep.metric)
    if plan.sweep.search == "optuna":
        return Optuna(plan, fates)
    return Listed(fate.trial for fate in fates if not fate.over)
