"""Steps a second, memory, and the peak of a device, as all benchmarks of training measure them."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

WARM_UP, LEAST_STEPS, LEAST_S = 5, 10, 10.0
PEAKS = {"H200": 989e12, "H100 PCIe": 756e12, "H100 NVL": 835e12, "H100": 989e12,
         "A100": 312e12, "L40S": 362e12, "RTX 4090": 165e12}
"""Dense bfloat16 operations a second that the makers state; of a CPU it is measured in float32."""


@dataclass(frozen=True)
class Figures:
    images_s: float
    memory_bytes: int


def steps_per_second(update: Callable[[Any, int], object], feed: Iterator[Any], batch: int, device: torch.device) -> Figures:
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
