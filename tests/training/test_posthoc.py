"""Averages of any length after the run: the arithmetic against slow sums, and a run's snapshots against a direct average."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from infd.errors import CheckpointError, ConfigError
from infd.training import posthoc

STEPS = 512


@given(st.floats(0.01, 0.28))
def test_law_the_weighting_has_the_length_asked_for(sigma):
    """By sums over a fine grid of the run."""
    s = (np.arange(200_000) + 0.5) / 200_000
    weights = s ** posthoc.exponent(sigma)
    weights /= weights.sum()
    mean = (weights * s).sum()
    assert np.sqrt((weights * (s - mean) ** 2).sum()) == pytest.approx(sigma, rel=1e-3)


@given(st.floats(1, 900), st.floats(1, 900), st.floats(0.2, 30), st.floats(0.2, 30))
def test_ref_the_product_of_two_weightings(t_a, t_b, gamma_a, gamma_b):
    last = min(t_a, t_b)
    s = (np.arange(100_000) + 0.5) / 100_000 * last
    slow = ((gamma_a + 1) * (s / t_a) ** gamma_a / t_a * (gamma_b + 1) * (s / t_b) ** gamma_b / t_b).sum() * last / len(s)
    fast = posthoc.product(*(torch.tensor(value, dtype=torch.float64) for value in (t_a, gamma_a, t_b, gamma_b)))
    assert float(fast) == pytest.approx(slow, rel=1e-3)


def walk(run: str, every: int) -> tuple[torch.Tensor, nn.Linear]:
    """A module whose weights wander for STEPS; its snapshots. All weights by step."""
    torch.manual_seed(0)
    module = nn.Linear(6, 5, bias=False)
    averages, seen = posthoc.Averages(module), []
    for step in range(1, STEPS + 1):
        with torch.no_grad():
            module.weight += 0.1 * torch.randn(5, 6)
        averages.update(step)
        seen.append(module.weight.detach().clone())
        if step % every == 0:
            posthoc.write_snapshot(run, step, averages)
    return torch.stack(seen), module


@pytest.mark.slow
@pytest.mark.parametrize(("sigma", "step", "most"), [
    (0.05, 512, 0.01), (0.10, 512, 0.01), (0.075, 512, 0.02), (0.13, 512, 0.05), (0.08, 320, 0.03)])
def test_law_an_average_made_afterwards_is_the_one_kept_all_along(tmp_path, sigma, step, most):
    seen, _ = walk(str(tmp_path), every=16)
    direct, gamma = seen[0].clone(), posthoc.exponent(sigma)
    for t in range(2, step + 1):
        direct = torch.lerp(direct, seen[t - 1], 1 - (1 - 1 / t) ** (gamma + 1))
    found = posthoc.averaged(str(tmp_path), sigma=sigma, step=step)["weight"]
    spread = (seen[step - 1] - direct).norm()
    assert (found - direct).norm() <= most * spread


def test_error_no_snapshots_and_no_such_length(tmp_path):
    with pytest.raises(CheckpointError, match="no post-hoc averages up to step 9; train with --optimizer.posthoc"):
        posthoc.averaged(str(tmp_path), sigma=0.1, step=9)
    with pytest.raises(ConfigError, match="sigma=0.3: must lie above 0 and below 0.289"):
        posthoc.exponent(0.3)
