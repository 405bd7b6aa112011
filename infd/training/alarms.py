"""Alarms: training that goes wrong while all its numbers are finite, told from rows of metrics, with the usual remedy.

A row is what the loop logs: means over a few steps. A check sees the rows of a span of steps, oldest first, and says what
is wrong, or None; `Watch` keeps the span and says it once. Nothing here stops training.
"""

import math
from collections import deque
from collections.abc import Callable, Sequence
from itertools import pairwise
from statistics import fmean, median
from typing import NamedTuple

from infd.config import AutoencoderTrainingConfig, DiffusionTrainingConfig, LoopConfig
from infd.training.loop import Metrics

ROWS = 10
"""Least rows of a span: one bad row is no alarm."""
SPANS = 100
"""A span is also at least 1/SPANS of all steps: codebooks wake, and a new discriminator settles, in the first percent."""
WON = 0.9
"""Share of patches and renders told apart from which the discriminator may have won. Karras et al. 2020 (StyleGAN2-ADA)
hold E[sign D(real)] at 0.6, which is 0.8 right; 0.9 is 0.8 in their unit. Measured with `tiny`: 0.5 to 0.83 untroubled,
0.94 to 1 on a single photograph that the discriminator learned by heart."""
RISE = 3.0
"""Times the noise between rows by which the generator's loss rises from the span's first half to its second: a level loss
of 10 rows does so once in a thousand times (simulated)."""
COLLAPSE = 0.5
"""Share of the adaptive weight that is left in the span's second half where it collapses."""
IDLE = 0.1
"""Share of the loss of a discriminator that knows nothing (hinge 1, relativistic log 2) at which it has nothing to learn."""
DEAD = 0.1
"""Share of the codes that even use would give, below which a codebook dies. Zhu et al. 2024 (VQGAN-LC) call 12% of 16,384
codes low. Measured with `tiny` and a VQ of 512, which dies: 0.4 to 2.7%."""
JUMP = 10.0
"""Times its median by which the norm of a gradient jumps; rows of untroubled runs of `tiny` stay below twice."""


class Alarm(NamedTuple):
    """`text`: found; expected; what to do. Or, where it is over, since when."""

    name: str
    text: str
    over: bool = False


# ---------------------------------------------------------------- checks


def discriminator_wins(rows: Sequence[Metrics], config: AutoencoderTrainingConfig) -> str | None:
    """It tells nearly all patches from renders, and the generator loses ground or the discriminator has nothing to learn."""
    accuracy = fmean(row["train/disc_accuracy"] for row in rows)
    if accuracy < WON:
        return None
    loss, weight, own = (halves(rows, name) for name in ("train/gan", "train/gan_weight", "train/disc_loss"))
    nothing = 1.0 if config.loss.gan_loss == "hinge" else math.log(2)
    signs = []
    if fmean(loss[1]) - fmean(loss[0]) > RISE * noise([*loss[0], *loss[1]]):
        signs.append(f"the generator's loss rose from {fmean(loss[0]):.3g} to {fmean(loss[1]):.3g}")
    if config.loss.adaptive_gan_weight and fmean(weight[1]) < COLLAPSE * fmean(weight[0]):
        signs.append(f"the adaptive weight fell from {fmean(weight[0]):.3g} to {fmean(weight[1]):.3g}")
    if fmean(own[1]) < IDLE * nothing:
        signs.append(f"its own loss is {fmean(own[1]):.3g}")
    if not signs:
        return None
    return (f"the discriminator wins: it tells {accuracy:.1%} of patches from renders, and {' and '.join(signs)}; expected "
            f"below {WON:.0%}; begin another --run (--start-from a checkpoint before this) with less --loss.gan, a later "
            "--loss.gan-from-step or more --loss.gradient-penalty")


def codebook_dies(rows: Sequence[Metrics], config: AutoencoderTrainingConfig, *, workers: int) -> str | None:
    """Few of the codes occur in a batch that could hold many."""
    size, even = codes(config), even_use(config, workers=workers)
    use, perplexity = (fmean(row[f"train/codebook_{name}"] for row in rows) for name in ("use", "perplexity"))
    if use >= DEAD * even:
        return None
    fewer = ("--model.quantizer fsq, or kl with --loss.quantizer 1e-6, a smaller --model.codebook-size"
             if config.model.quantizer == "vq" else
             "fewer --model.fsq-levels")
    return (f"the codebook dies: a batch holds {use:.2%} of its {size} codes, perplexity {perplexity:.3g}; expected more than "
            f"{DEAD * even:.2%}, {DEAD:.0%} of what even use gives; begin another --run with {fewer}, a larger "
            "--loop.batch or a lower --optimizer.lr")


def gradient_jumps(rows: Sequence[Metrics], config: AutoencoderTrainingConfig | DiffusionTrainingConfig) -> str | None:
    """The last row's norm is far above that of the span."""
    name = "train/grad_norm_max"                            # of a row's steps: in their mean one step would be lost
    usual, last = median(row[name] for row in rows[:-1]), rows[-1][name]
    if last <= JUMP * usual:
        return None
    clip = f" (it is clipped to {config.optimizer.clip_norm:g})" if config.optimizer.clip_norm else ""
    return (f"the gradient jumps: its norm is {last:.3g}{clip}, {usual:.3g} before; expected less than {JUMP:.0f} times that; "
            "if it comes again or the loss stays high, begin another --run (--start-from a checkpoint before this) with "
            "--optimizer.clip-norm or a lower --optimizer.lr")


def codes(config: AutoencoderTrainingConfig) -> int:
    """Codes that the quantizer has."""
    model = config.model
    return model.codebook_size if model.quantizer == "vq" else math.prod(model.fsq_levels)


def even_use(config: AutoencoderTrainingConfig, *, workers: int) -> float:
    """Share of the codes that one worker's micro-batch holds in the mean where all codes are equally likely."""
    places = config.loop.batch // workers // config.loop.accumulate * (config.crop.lowres_px // config.model.factor) ** 2
    return 1 - (1 - 1 / codes(config)) ** places


def halves(rows: Sequence[Metrics], name: str) -> tuple[list[float], list[float]]:
    """A metric of the span's first half, and of its second."""
    values = [row[name] for row in rows]
    return values[:len(values) // 2], values[len(values) // 2:]


def noise(values: Sequence[float]) -> float:
    """Standard deviation of values around their trend, from the differences of neighbours. Source: von Neumann 1941."""
    return math.sqrt(fmean((b - a) ** 2 for a, b in pairwise(values)) / 2)


# ---------------------------------------------------------------- the watch


Check = tuple[str, Callable[[Sequence[Metrics]], str | None]]
"""A metric, and what is wrong with the rows of a span that have it."""


class Watch:
    """Looks at each row of a run. Law: an alarm that lasts is told once; again only after a whole span without it."""

    def __init__(self, loop: LoopConfig, checks: dict[str, Check]) -> None:
        self.every, self.span = loop.log_every, max(ROWS * loop.log_every, loop.steps // SPANS)
        self.checks = checks
        self.rows: deque[tuple[int, Metrics]] = deque()
        self.lasting: dict[str, int] = {}
        """Step at which each alarm that was told was last true."""

    @classmethod
    def of_autoencoder(cls, config: AutoencoderTrainingConfig, *, workers: int) -> "Watch":
        """Of stage one."""
        return cls(config.loop, {
            "discriminator": ("train/disc_accuracy", lambda rows: discriminator_wins(rows, config)),
            "codebook": ("train/codebook_use", lambda rows: codebook_dies(rows, config, workers=workers)),
            "gradient": ("train/grad_norm_max", lambda rows: gradient_jumps(rows, config))})

    @classmethod
    def of_gradients(cls, config: DiffusionTrainingConfig) -> "Watch":
        """Of stage two."""
        return cls(config.loop, {"gradient": ("train/grad_norm_max", lambda rows: gradient_jumps(rows, config))})

    def look(self, step: int, metrics: Metrics) -> list[Alarm]:
        """Alarms that begin or are over with this row; a row without training's metrics changes nothing."""
        if "train/loss" not in metrics:
            return []
        self.rows.append((step, metrics))
        while self.rows[0][0] <= step - self.span:
            self.rows.popleft()
        told = []
        for name, (metric, check) in self.checks.items():
            if text := self._verdict(metric, check):
                if name not in self.lasting:
                    told.append(Alarm(name, text))
                self.lasting[name] = step
            elif step - self.lasting.get(name, step) >= self.span:
                told.append(Alarm(name, f"{name}: as expected again since step {self.lasting.pop(name)}", over=True))
        return told

    def _verdict(self, metric: str, check: Callable[[Sequence[Metrics]], str | None]) -> str | None:
        """What `check` says of the rows that have `metric`; None until they fill the span."""
        steps = [step for step, row in self.rows if metric in row]
        if len(steps) < ROWS or steps[-1] - steps[0] < self.span - self.every:
            return None
        return check([row for _, row in self.rows if metric in row])
