"""Progress of training for people: a live bar on a terminal, else one line every few steps."""

import logging
import sys
import time

from PIL import Image
from tqdm import tqdm

from infd.training.alarms import Alarm
from infd.training.loop import Metrics
from infd.training.run import Observer

logger = logging.getLogger(__name__)

SHOWN = ("train/loss", "train/psnr")


class ProgressObserver:
    """Shows step, rate, loss, share of time spent waiting for data, and time left."""

    def __init__(self, *, steps: int) -> None:
        self.steps = steps
        self.first: tuple[int, float] | None = None
        self.bar: tqdm | None = None

    def log(self, step: int, metrics: Metrics) -> None:
        if "train/loss" not in metrics:
            judged = tuple(name for name in metrics if name.startswith("eval/"))
            what, shown = ("evaluation", judged) if judged else ("validation", ("val/loss", "val/psnr", "val/lpips"))
            logger.info("step %d: %s %s", step, what, figures(metrics, shown))
            return
        if sys.stderr.isatty():
            self._move_bar(step, metrics)
            return
        now = time.monotonic()
        first_step, first_time = self.first = self.first or (step, now)
        left = ""
        if step > first_step:
            left = f", {duration((self.steps - step) * (now - first_time) / (step - first_step))} left"
        logger.info("step %d/%d: %s, %.1f images/s, waiting %.0f%%%s", step, self.steps, figures(metrics, SHOWN),
                    metrics["speed/images_per_s"], 100 * metrics["speed/data_wait_fraction"], left)

    def _move_bar(self, step: int, metrics: Metrics) -> None:
        self.bar = self.bar or tqdm(total=self.steps, initial=step, unit="step", dynamic_ncols=True)
        self.bar.set_postfix_str(f"{figures(metrics, SHOWN)}, {metrics['speed/images_per_s']:.1f} images/s, "
                                 f"waiting {100 * metrics['speed/data_wait_fraction']:.0f}%", refresh=False)
        self.bar.update(step - self.bar.n)
        if step == self.steps:
            self.bar.close()

    def picture(self, step: int, name: str, image: Image.Image) -> None:
        """Pictures are not shown in a terminal."""

    def checkpointed(self, step: int, uri: str, metrics: Metrics) -> None:
        logger.info("step %d: checkpoint %s", step, uri)

    def alarm(self, step: int, alarm: Alarm) -> None:
        logger.log(logging.INFO if alarm.over else logging.WARNING, "step %d: %s", step, alarm.text)


class Observers:
    """Tells several observers, in order."""

    def __init__(self, *observers: Observer) -> None:
        self.observers = observers

    def log(self, step: int, metrics: Metrics) -> None:
        for observer in self.observers:
            observer.log(step, metrics)

    def picture(self, step: int, name: str, image: Image.Image) -> None:
        for observer in self.observers:
            observer.picture(step, name, image)

    def checkpointed(self, step: int, uri: str, metrics: Metrics) -> None:
        for observer in self.observers:
            observer.checkpointed(step, uri, metrics)

    def alarm(self, step: int, alarm: Alarm) -> None:
        for observer in self.observers:
            observer.alarm(step, alarm)


def figures(metrics: Metrics, names: tuple[str, ...]) -> str:
    """`loss 0.123, psnr 24.1` of those names that are there."""
    return ", ".join(f"{name.split('/')[0]} {name.split('/')[1]} {metrics[name]:.4g}" for name in names if name in metrics)


def duration(seconds: float) -> str:
    """4200 s -> `1 h 10 min`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
