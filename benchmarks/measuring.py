"""Steps a second, memory, and the peak of a device, as all benchmarks of training measure them."""

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

WARM_UP, LEAST_STEPS, LEAST_S = 5, 10, 10.0
ROUNDS, ROUND_STEPS, ROUND_S = 25, 3, 0.8
MIB = 1 << 20
PEAKS = {"H200": 989e12, "H100 PCIe": 756e12, "H100 NVL": 835e12, "H100": 989e12,
         "A100": 312e12, "L40S": 362e12, "RTX 4090": 165e12}
"""Dense bfloat16 operations a second that the makers state; of a CPU it is measured in float32."""


Update = Callable[[Any, int], object]
"""One step: a batch, and its number from 1 on."""


@dataclass(frozen=True)
class Figures:
    images_s: float
    memory_bytes: int
    ratio: float | None = None
    """To the first row, where both took turns."""


@dataclass(frozen=True)
class Candidate:
    """One row of a table."""

    name: str
    batch: int
    make: Callable[[], tuple[Update, Iterator[Any]]]
    """What is measured, and its batches."""


def table(candidates: Sequence[Candidate], *, flops: int, device: torch.device, unit: str) -> None:
    """A row for each candidate, to stdout; the ratios are to the first, and "-" where that failed."""
    most, about = peak(device)
    print(f"{flops / 1e9:,.1f} GFLOP a sample; peak {about}.\n")
    print(f"| way | batch | {unit}/s | ÷ published | share of peak | memory, MiB |\n|---|---|---|---|---|---|", flush=True)
    first = 0.0
    for number, (candidate, found) in enumerate((one_by_one if device.type == "cuda" else in_turns)(candidates, device)):
        if isinstance(found, str):
            print(f"| {candidate.name} | {candidate.batch} | {found} | | | |", flush=True)
            continue
        first = found.images_s if number == 0 else first
        against = found.ratio or (found.images_s / first if first else None)
        ratio = f"{against:.2f} ×" if against else "-"
        memory = f"{found.memory_bytes / MIB:,.0f}" if found.memory_bytes else "not measured"
        print(f"| {candidate.name} | {candidate.batch} | {found.images_s:.1f} | {ratio} | "
              f"{flops * found.images_s / most:.1%} | {memory} |", flush=True)


def one_by_one(candidates: Sequence[Candidate], device: torch.device) -> Iterator[tuple[Candidate, Figures | str]]:
    """Each alone in memory; the name of an error where one cannot run."""
    for candidate in candidates:
        found: Figures | str
        try:
            found = steps_per_second(*candidate.make(), candidate.batch, device)
        except RuntimeError as error:  # out of memory, or what a compiler cannot do: the other rows shall come
            found = type(error).__name__
        torch.compiler.reset()
        gc.collect()
        torch.cuda.empty_cache()
        yield candidate, found


def in_turns(candidates: Sequence[Candidate], device: torch.device) -> Iterator[tuple[Candidate, Figures | str]]:
    """Medians of ROUNDS short turns of each, and of each turn's ratio to the first row's: the speed of a shared machine
    changes within a minute, and the turns of one round are seconds apart."""
    made: list[tuple[Update, Iterator[Any]] | str] = []
    for candidate in candidates:
        try:
            update, feed = candidate.make()
            for step in range(1, WARM_UP + 1):
                update(next(feed), step)
            made.append((update, feed))
        except RuntimeError as error:  # what a compiler cannot do
            made.append(type(error).__name__)
    rates: list[list[float]] = [[] for _ in candidates]
    for turn in range(ROUNDS):
        for place in range(len(candidates)):
            row = (place + turn) % len(candidates)
            one, candidate, mine = made[row], candidates[row], rates[row]
            if isinstance(one, str):
                continue
            steps, begun = 0, time.perf_counter()
            while steps < ROUND_STEPS or time.perf_counter() - begun < ROUND_S:
                one[0](next(one[1]), WARM_UP + 1 + turn)
                steps += 1
            mine.append(steps * candidate.batch / (time.perf_counter() - begun))
    for one, candidate, mine in zip(made, candidates, rates, strict=True):
        if isinstance(one, str):
            yield candidate, one
            continue
        ratios = [rate / first for rate, first in zip(mine, rates[0], strict=True)] if rates[0] else []
        yield candidate, Figures(statistics.median(mine), 0, statistics.median(ratios) if ratios else None)


def steps_per_second(update: Update, feed: Iterator[Any], batch: int, device: torch.device) -> Figures:
    """Steps until both LEAST_STEPS and LEAST_S are over, after a warm-up."""
    for step in range(1, WARM_UP + 1):
        update(next(feed), step)
    settle(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    steps, begun = 0, time.perf_counter()
    while steps < LEAST_STEPS or time.perf_counter() - begun < LEAST_S:
        update(next(feed), WARM_UP + 1 + steps)
        steps += 1
        if steps % LEAST_STEPS == 0:
            settle(device)
    settle(device)
    took = time.perf_counter() - begun
    used = torch.cuda.max_memory_allocated() if device.type == "cuda" else 0
    return Figures(steps * batch / took, used)


def settle(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def peak(device: torch.device) -> tuple[float, str]:
    """Operations a second of the device: stated by its maker, else of a float32 matrix product measured here."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name()
        for part, stated in PEAKS.items():
            if part in name:
                return stated, f"{stated / 1e12:.0f} TFLOP/s of dense bfloat16, as its maker states"
    side = 2048
    a, b = torch.randn(side, side, device=device), torch.randn(side, side, device=device)
    best = 0.0
    for _ in range(5):
        begun = time.perf_counter()
        torch.mm(a, b)
        settle(device)
        best = max(best, 2 * side ** 3 / (time.perf_counter() - begun))
    return best, f"{best / 1e12:.2f} TFLOP/s, the best of five float32 matrix products of {side}²"
