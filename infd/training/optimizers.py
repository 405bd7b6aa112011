"""Adam as all stages use it: its rate by step, clipping, a moving average of weights, and its state by parameter name."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from infd.config import OptimizerConfig
from infd.training.world import bare


def learning_rate(config: OptimizerConfig, step: int) -> float:
    """The rate of a step (from 1): a rise over `warmup_steps`, constant, then a linear fall to 1%."""
    rate = config.lr * min(1.0, step / max(config.warmup_steps, 1))
    if config.decay_from_step is None or config.decay_to_step is None or step <= config.decay_from_step:
        return rate
    passed = (step - config.decay_from_step) / (config.decay_to_step - config.decay_from_step)
    return rate * max(0.01, 1 - 0.99 * passed)


def adam(module: nn.Module, config: OptimizerConfig) -> torch.optim.Adam:
    """Adam over all parameters that learn, or AdamW where they decay, fused."""
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    how: dict[str, Any] = {"lr": config.lr, "betas": config.betas, "fused": True}
    if config.weight_decay:
        return torch.optim.AdamW(parameters, weight_decay=config.weight_decay, **how)
    return torch.optim.Adam(parameters, **how)


def update(optimizer: torch.optim.Adam, config: OptimizerConfig, step: int) -> Tensor:
    """One step of Adam at the rate of `step`, the gradient clipped first where asked; its norm before that, a scalar."""
    learning = [parameter for group in optimizer.param_groups for parameter in group["params"] if parameter.grad is not None]
    for parameter in learning:
        gradient = parameter.grad
        if gradient.stride() != parameter.stride() and order_of(gradient) != order_of(parameter):
            parameter.grad = as_of(parameter, gradient)       # fused Adam walks memory: it would update other weights
    gradients = [parameter.grad for parameter in learning]
    norm = torch.nn.utils.get_total_norm(gradients)
    if config.clip_norm > 0:
        torch._foreach_mul_(gradients, (config.clip_norm / (norm + 1e-6)).clamp(max=1))  # pyright: ignore[reportPrivateImportUsage]
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(config, step)
    optimizer.step()
    return norm


def order_of(tensor: Tensor) -> list[int]:
    """Strides of the axes that have any."""
    return [stride for stride, length in zip(tensor.stride(), tensor.shape, strict=True) if length > 1]


@torch.no_grad()
def average_into(averages: Iterable[Tensor], parameters: Iterable[Tensor], decay: float) -> None:
    """averages = decay * averages + (1 - decay) * parameters, in place, all at once."""
    torch._foreach_lerp_(list(averages), list(parameters), 1 - decay)  # pyright: ignore[reportPrivateImportUsage]


def moments(name: str, module: nn.Module, optimizer: torch.optim.Adam) -> dict[str, Tensor]:
    """Adam's state by parameter: NAME.PARAMETER.exp_avg, …"""
    return {f"{name}.{key}.{moment}": torch.as_tensor(value)
            for key, parameter in bare(module).named_parameters()
            for moment, value in optimizer.state.get(parameter, {}).items()}


def load_moments(name: str, module: nn.Module, optimizer: torch.optim.Adam, state: dict[str, Tensor]) -> None:
    """Give `optimizer` the state that `moments` gave, on each parameter's device."""
    for key, parameter in bare(module).named_parameters():
        prefix = f"{name}.{key}."
        found = {entry.removeprefix(prefix): value for entry, value in state.items()
                 if entry.startswith(prefix) and "." not in entry.removeprefix(prefix)}
        if found:
            optimizer.state[parameter] = {
                moment: value.to(parameter.device, copy=True) if moment == "step" else as_of(parameter, value)
                for moment, value in found.items()}


def as_of(parameter: Tensor, moment: Tensor) -> Tensor:
    """A copy on the parameter's device and in its layout in memory, which fused Adam asks for."""
    return torch.empty_like(parameter, dtype=moment.dtype, requires_grad=False).copy_(moment)
