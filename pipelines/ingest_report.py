"""What an ingest shows to people, on stderr: progress while it runs, a summary when it is done."""

import logging
import sys
import threading
import time
from collections.abc import Callable, Mapping
from types import TracebackType

import numpy as np
import pyarrow as pa
from tqdm import tqdm

from infd.data import snapshot
from pipelines.ingest_plan import Outcome, Plan, tally

logger = logging.getLogger(__name__)

LINE_EVERY_S = 5.0
SILENT_FOR_S = 60.0
BAR_WIDTH = 40


class Progress:
    """A live bar on a terminal, else a line every few seconds. Where nothing ends for a minute, it says what is free."""

    def __init__(self, *, total: int, done: int, resources: Callable[[], Mapping[str, float]]) -> None:
        self.total, self.first, self.done = total, done, done
        self.rejected, self.size = 0, 0
        self._resources = resources
        self._began = self._said = self._moved = time.monotonic()
        self._end = threading.Event()
        self._watch = threading.Thread(target=self._watching, name="ingest-watch", daemon=True)
        self._bar = tqdm(total=total, initial=done, unit="photo", dynamic_ncols=True) if sys.stderr.isatty() else None

    def __enter__(self) -> "Progress":
        self._watch.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._end.set()
        self._watch.join()
        if self._bar is not None:
            self._bar.close()

    def add(self, *, files: int, rejected: int, size: int) -> None:
        """A unit has ended."""
        self.done, self.rejected, self.size = self.done + files, self.rejected + rejected, self.size + size
        self._moved = time.monotonic()
        if self._bar is not None:
            self._bar.set_postfix_str(f"{self.rejected} rejected, {readable(self.size)}", refresh=False)
            self._bar.update(files)
        elif self._moved - self._said >= LINE_EVERY_S or self.done == self.total:
            self._said = self._moved
            rate = (self.done - self.first) / max(1e-6, self._moved - self._began)
            logger.info("%d/%d files, %d rejected, %s written, %.1f images/s, %.0f s left", self.done, self.total,
                        self.rejected, readable(self.size), rate, (self.total - self.done) / rate)

    def _watching(self) -> None:
        while not self._end.wait(SILENT_FOR_S):
            silent = time.monotonic() - self._moved
            if silent >= SILENT_FOR_S:
                logger.warning("no unit has ended for %.0f s (%d/%d files); free CPUs in the cluster: %g; if that is 0, "
                               "other work holds them", silent, self.done, self.total, self._resources().get("CPU", 0))


def summary(plan: Plan, outcome: Outcome, uri: str, *, read: int, seconds: float) -> str:
    """The closing lines: images in, kept, rejected by reason, shards, bytes, short sides, rate."""
    manifest = snapshot.manifest_of(pa.Table.from_pylist(outcome.entries, snapshot.ENTRY))
    lost = "".join(f"\n    {reason:<16}{count:>9}" for reason, count in tally(outcome.new_rejects).items())
    size = sum(entry["bytes"] for entry in outcome.entries)
    if outcome.new_rejects:
        lost += f"\n    each named in {plan.uri('rejects.parquet')}"
    removed = [f"  removed           {len(plan.removed):>9}, their files are gone"] if plan.removed else []
    return "\n".join((
        f"snapshot {uri}",
        f"  images in         {plan.listed:>9}, of them {plan.listed - plan.photos} known already",
        f"  kept              {outcome.kept:>9}",
        f"  rejected          {len(outcome.new_rejects):>9}{lost}", *removed,
        f"  in the snapshot   {len(manifest):>9} photos, {len(outcome.entries)} shards, {readable(size)}",
        f"  read now          {read:>9} in {seconds:.1f} s, {read / max(seconds, 1e-6):.1f} images/s",
        "  short sides", histogram(manifest.short_side)))


def histogram(sides: np.ndarray) -> str:
    """A line for each half octave of short sides: range in pixels, photos, a bar."""
    steps = np.floor(2 * np.log2(np.maximum(sides, 1))).astype(int)
    low, high = int(steps.min()), int(steps.max())
    many = np.bincount(steps - low, minlength=high - low + 1)
    edges = [int(np.ceil(2 ** (step / 2) - 1e-9)) for step in range(low, high + 2)]
    return "\n".join(f"    {edges[i]:>6} to {edges[i + 1] - 1:<6}{count:>8}  {'█' * -(-BAR_WIDTH * count // many.max())}"
                     for i, count in enumerate(many.tolist()))


def readable(size: float) -> str:
    """1536 → `1.5 KiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"
