"""Post-hoc averages of weights: two averages are kept during the run, one of any length is made of them afterwards.

A power-function average of exponent gamma weighs step s of t by s^gamma. Its length sigma is the standard deviation of
that weighting as a share of the run. Kept are snapshots of two such averages; a third, of any sigma at any step, is the
combination of the snapshots whose weighting fits best.

    RUN/averages/step-00000500.safetensors      0.NAME and 1.NAME: the tensors under SIGMAS[0] and SIGMAS[1]

Source: Karras et al. 2024 (EDM2), section 3.1, 3.2 and appendix C.
"""

import re
from collections.abc import Sequence

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from infd import checkpoint, storage
from infd.errors import CheckpointError, ConfigError
from infd.training.optimizers import average_into

SIGMAS = (0.05, 0.10)
"""Lengths of the two averages that are kept."""
LONGEST = 12 ** -0.5
"""The length of a plain mean over the run."""


def exponent(sigma: float) -> float:
    """gamma of a length: sigma^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3)). Raises ConfigError for lengths that no gamma
    has."""
    if not 0 < sigma < LONGEST:
        raise ConfigError(f"sigma={sigma}: must lie above 0 and below {LONGEST:.3f}, the length of a plain mean")
    return float(np.roots([1, 7, 16 - sigma ** -2, 12 - sigma ** -2]).real.max())


class Averages:
    """The two averages of a module's weights, in its device's memory."""

    def __init__(self, module: nn.Module) -> None:
        self.of = {name: value for name, value in module.state_dict(keep_vars=True).items()}
        self.values = [{name: value.detach().clone() for name, value in self.of.items()} for _ in SIGMAS]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after step t, which counts from 1: the average moves by 1 - (1 - 1/t)^(gamma + 1)."""
        now = [value.detach() for value in self.of.values()]
        for sigma, values in zip(SIGMAS, self.values, strict=True):
            average_into(values.values(), now, (1 - 1 / step) ** (exponent(sigma) + 1))

    def state(self) -> dict[str, Tensor]:
        """`posthoc.0.NAME`, `posthoc.1.NAME`"""
        return {f"posthoc.{index}.{name}": value for index, values in enumerate(self.values) for name, value in values.items()}

    def load(self, state: dict[str, Tensor]) -> None:
        """Take over `state`. Raises CheckpointError where it was taken without these averages."""
        for index, values in enumerate(self.values):
            for name, value in values.items():
                if (found := state.get(f"posthoc.{index}.{name}")) is None:
                    raise CheckpointError("checkpoint: no post-hoc averages in it; the run began without optimizer.posthoc; "
                                          "go on without, or begin another --run")
                value.copy_(found)


# ---------------------------------------------------------------- snapshots


def snapshot_uri(run: str, step: int) -> str:
    return storage.join(run, "averages", f"step-{step:08d}.safetensors")


def write_snapshot(run: str, step: int, averages: Averages) -> None:
    """Keep both averages as they are after `step`, float32."""
    tensors = {name.removeprefix("posthoc."): value.cpu().contiguous() for name, value in averages.state().items()}
    storage.put_atomic(snapshot_uri(run, step), safetensors.torch.save(tensors))


def snapshots(run: str) -> list[int]:
    """Steps of a run's snapshots, rising."""
    found = (re.fullmatch(r"step-(\d{8})\.safetensors", info.uri.rsplit("/", 1)[-1])
             for info in storage.list_objects(storage.join(run, "averages")))
    return sorted(int(match[1]) for match in found if match)


def averaged(run: str, *, sigma: float, step: int) -> dict[str, Tensor]:
    """The weights at `step`, averaged over the length `sigma`, of a run's snapshots up to that step; one in memory at a time.

    Raises CheckpointError where the run kept none.
    """
    steps = [at for at in snapshots(run) if at <= step]
    if not steps:
        raise CheckpointError(f"run {run}: no post-hoc averages up to step {step}; train with --optimizer.posthoc to keep some")
    gammas = [exponent(kept) for kept in SIGMAS]
    shares = best_fit([at for at in steps for _ in gammas], gammas * len(steps), step=step, gamma=exponent(sigma))
    total: dict[str, Tensor] = {}
    for at, pair in zip(steps, shares.split(len(SIGMAS)), strict=True):
        tensors = safetensors.torch.load(storage.read_bytes(snapshot_uri(run, at)))
        for key, value in tensors.items():
            index, name = key.split(".", 1)
            part = value.double() * pair[int(index)]
            total[name] = total[name] + part if name in total else part
    return {name: value.float() for name, value in total.items()}


def write_averaged(run: str, out: str, *, sigma: float, step: int | None = None) -> str:
    """The run's newest checkpoint, or that of a step, with the average over `sigma` as its moving average, as the
    checkpoint folder `out`; returns `out`. Raises CheckpointError where `out` is taken."""
    if checkpoint.is_whole(out):
        raise CheckpointError(f"{out}: a checkpoint is there already; none is ever replaced; name another --out")
    found = checkpoint.newest(run) if step is None else checkpoint.load(checkpoint.step_uri(run, step))
    if found is None:
        raise CheckpointError(f"run {run}: no checkpoint yet; let it train first")
    denoiser = averaged(run, sigma=sigma, step=found.step)
    model = {name: value for name, value in found.model().items() if not name.startswith("denoiser_average.")}
    model |= {f"denoiser_average.{name}": value for name, value in denoiser.items()}
    checkpoint.save(out, model=model, train_state={}, meta={
        **found.meta, "metrics": {}, "posthoc_sigma": sigma, "copied_from": found.uri})     # its metrics are of other weights
    return out


def best_fit(steps: Sequence[int], gammas: Sequence[float], *, step: int, gamma: float) -> Tensor:
    """How much each of n snapshots counts, (n,) float64: the least-squares fit to the weighting of `gamma` at `step`."""
    t, g = (torch.tensor(values, dtype=torch.float64) for values in (steps, gammas))
    wanted_t, wanted_g = (torch.tensor([value], dtype=torch.float64) for value in (step, gamma))
    inner = product(t[:, None], g[:, None], t[None], g[None])
    return torch.linalg.lstsq(inner, product(t, g, wanted_t, wanted_g)[:, None], driver="gelsd").solution[:, 0]


def product(t_a: Tensor, gamma_a: Tensor, t_b: Tensor, gamma_b: Tensor) -> Tensor:
    """The integral over s of two weightings (gamma + 1) s^gamma / t^(gamma + 1), each on 0 … t; broadcast."""
    later, gamma_later = torch.maximum(t_a, t_b), torch.where(t_a < t_b, gamma_b, gamma_a)
    return ((gamma_a + 1) * (gamma_b + 1) / (gamma_a + gamma_b + 1)
            * (torch.minimum(t_a, t_b) / later) ** gamma_later / later)
