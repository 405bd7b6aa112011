"""Rows of metrics: what the loop adds to those of the stage."""

import pytest
import torch

from infd.presets import tiny
from infd.training.alarms import gradient_jumps
from infd.training.loop import Metrics, Window
from infd.training.world import World


class Read:
    """Batches that were waited for a quarter of the time."""

    def __iter__(self):
        return iter(())

    def stats(self) -> dict[str, float]:
        self.asked = getattr(self, "asked", 0) + 1
        return {"wait_s": 0.5 * self.asked, "total_s": 2.0 * self.asked}


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_row_tells_the_speed_and_on_a_gpu_its_peak_of_memory_since_the_last(device, monkeypatch):
    """The counters of torch.cuda stand in for a GPU, so that this runs everywhere; the metrics stay on the CPU."""
    peaks = [3 << 30, 2 << 30]
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: peaks[0])
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: peaks.pop(0))
    window = Window(World(device=torch.device(device)), tiny().loop, Read())
    rows = []
    for step in (1, 2):
        window.add(step, {"train/loss": torch.tensor(float(step))})
        rows.append(window.fetch(None))  # pyright: ignore
    assert [row["train/loss"] for row in rows] == [1, 2] and all(row["speed/data_wait_fraction"] == 0.25 for row in rows)
    assert all(row["speed/images_per_s"] > 0 for row in rows)
    assert [row.get("train/gpu_memory_bytes") for row in rows] == ([3 << 30, 2 << 30] if device == "cuda" else [None] * 2)


def test_law_one_step_with_a_large_gradient_is_seen_in_its_row():
    """The mean of 50 norms hides one of 25; an alarm looks at the largest."""
    window, config = Window(World(), tiny().loop, Read()), tiny()
    rows: list[Metrics] = []
    for row in range(20):
        for step in range(50):
            norm = 25.0 if (row, step) == (19, 7) else 1.0
            window.add(50 * row + step + 1, {"train/loss": torch.tensor(0.1), "train/grad_norm": torch.tensor(norm)})
        rows.append(window.fetch(None))  # pyright: ignore
    assert rows[-1]["train/grad_norm"] < 2 and rows[-1]["train/grad_norm_max"] == 25
    assert gradient_jumps(rows[:-1], config) is None
    assert "its norm is 25, 1 before" in (gradient_jumps(rows, config) or "")
