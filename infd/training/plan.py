"""What a training run will cost, computed without data, weights or network (`--dry-run`)."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from infd.config import AutoencoderTrainingConfig
from infd.models.autoencoder import Autoencoder
from infd.models.discriminator import PatchDiscriminator

MIB = 1 << 20


@dataclass(frozen=True)
class Plan:
    """Parameters of each part, and bytes a worker's device needs."""

    parameters: dict[str, int]
    weights_bytes: int
    optimizer_bytes: int
    activation_bytes: int

    @property
    def total_bytes(self) -> int:
        return self.weights_bytes + self.optimizer_bytes + self.activation_bytes


def plan_autoencoder(config: AutoencoderTrainingConfig, *, workers: int) -> Plan:
    """Build the networks on the meta device and count.

    Activations are the generator's; LPIPS and the discriminator are freed before its backward begins.
    """
    with torch.device("meta"):
        autoencoder = Autoencoder(config.model)
        discriminator = PatchDiscriminator(config.discriminator) if config.loss.gan > 0 else None
    parts: dict[str, nn.Module | None] = {
        "encoder": nn.ModuleList([autoencoder.encoder, autoencoder.quant_conv]),
        "quantizer": autoencoder.quantizer,
        "decoder": nn.ModuleList([autoencoder.post_quant_conv, autoencoder.decoder]),
        "renderer": autoencoder.renderer,
        "discriminator": discriminator,
    }
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items() if part is not None}
    trained = sum(counts.values())
    return Plan(counts, weights_bytes=trained * 4, optimizer_bytes=trained * 3 * 4,          # gradients and two moments
                activation_bytes=activation_bytes(config, workers=workers))


def activation_bytes(config: AutoencoderTrainingConfig, *, workers: int) -> int:
    """Bytes that autograd keeps for the generator's backward of one worker's share of the batch.

    Counted on tensors without memory, each storage once: no guess, but for a compiled or a GPU's own kernels.
    """
    kept: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage.nbytes()
        return tensor

    batch = max(config.loop.batch // workers, 1)
    lowres, patch = config.crop.lowres_px, config.crop.patch_px
    with FakeTensorMode(), torch.device("cpu"):
        autoencoder = Autoencoder(config.model)
        weights = {parameter.untyped_storage()._cdata for parameter in autoencoder.parameters()}
        where = torch.zeros(batch, dtype=torch.int64)
        noise = None
        if config.model.quantizer == "kl":
            side = lowres // config.model.factor
            noise = torch.empty(batch, config.model.z_dim, side, side)
        with (torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor),
              torch.autocast("cpu", torch.bfloat16, enabled=config.loop.precision == "bfloat16")):
            output = autoencoder(torch.empty(batch, 3, lowres, lowres), where + config.crop.r_min, where, where, patch,
                                 noise=noise)
        del output
    return sum(size for key, size in kept.items() if key not in weights)


def describe(config: AutoencoderTrainingConfig, *, workers: int) -> str:
    """The plan as a few lines of text."""
    plan = plan_autoencoder(config, workers=workers)
    lines = [f"{name:<14}{count:>12,} parameters" for name, count in plan.parameters.items()]
    lines += [
        f"{'in all':<14}{sum(plan.parameters.values()):>12,} parameters",
        "",
        f"memory a worker ({config.loop.batch // workers} of {config.loop.batch} samples a step, {config.loop.precision}):",
        f"  weights {plan.weights_bytes / MIB:,.0f} MiB + gradients and Adam {plan.optimizer_bytes / MIB:,.0f} MiB"
        f" + the generator's activations {plan.activation_bytes / MIB:,.0f} MiB = {plan.total_bytes / MIB:,.0f} MiB",
        f"{config.loop.steps:,} steps x {config.loop.batch} = {config.loop.steps * config.loop.batch:,} samples",
    ]
    return "\n".join(lines)
