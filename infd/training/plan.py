"""What a training run will cost, computed without weights or network (`--dry-run`); with a dataset, also what it reads."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from infd.config import AutoencoderTrainingConfig
from infd.data.order import Order
from infd.data.snapshot import Manifest
from infd.losses.perceptual import Lpips
from infd.models.autoencoder import Autoencoder, AutoencoderOutput
from infd.models.discriminator import PatchDiscriminator
from infd.training.autoencoder import frozen

MIB, GIB = 1 << 20, 1 << 30
TFLOP = 1e12


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

    Activations are the generator's; those of LPIPS and of the discriminator come on top while their gradients are made.
    """
    with torch.device("meta"):
        autoencoder = frozen(Autoencoder(config.model), config.freeze)
        discriminator = PatchDiscriminator(config.discriminator) if config.loss.gan > 0 else None
    parts: dict[str, nn.Module | None] = {
        "encoder": nn.ModuleList([autoencoder.encoder, autoencoder.quant_conv]),
        "quantizer": autoencoder.quantizer,
        "decoder": nn.ModuleList([autoencoder.post_quant_conv, autoencoder.decoder]),
        "renderer": autoencoder.renderer,
        "discriminator": discriminator,
    }
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items() if part is not None}
    trained = sum(p.numel() for part in parts.values() if part is not None for p in part.parameters() if p.requires_grad)
    average = sum(p.numel() for p in autoencoder.parameters()) if config.optimizer.ema_decay else 0
    return Plan(counts, weights_bytes=(sum(counts.values()) + average) * 4,
                optimizer_bytes=trained * 3 * 4,                                             # gradients and two moments
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

    batch = max(config.loop.batch // workers // config.loop.accumulate, 1)
    with FakeTensorMode(), torch.device("cpu"):
        autoencoder = frozen(Autoencoder(config.model), config.freeze)
        weights = {parameter.untyped_storage()._cdata for parameter in autoencoder.parameters()}
        with (torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor),
              torch.autocast("cpu", torch.bfloat16, enabled=config.loop.precision == "bfloat16")):
            output = forward(autoencoder, config, batch)
        del output
    return sum(size for key, size in kept.items() if key not in weights)


def forward(autoencoder: Autoencoder, config: AutoencoderTrainingConfig, batch: int) -> AutoencoderOutput:
    """One pass over inputs of the sides that training has."""
    lowres, patch = config.crop.lowres_px, config.crop.patch_px
    where, side = torch.zeros(batch, dtype=torch.int64), lowres // config.model.factor
    noise = torch.empty(batch, config.model.z_dim, side, side) if config.model.quantizer == "kl" else None
    return autoencoder(torch.empty(batch, 3, lowres, lowres), where + config.crop.r_min, where, where, patch, noise=noise)


def model_flops(config: AutoencoderTrainingConfig) -> dict[str, int]:
    """Floating-point operations that one sample of one update needs, by part: multiplications and additions of matrix
    products and convolutions, forward and backward, counted as they would run on tensors without memory.

    Needed is: the autoencoder once forward and backward; LPIPS of prediction and patch, backward to the prediction; the
    discriminator for the generator's loss, backward to the prediction, and for its own of both, backward to its weights.
    What the published loop runs beyond this is not counted, nor what a compiler leaves out. 0 for parts that are off.
    """
    patch = (1, 3, config.crop.patch_px, config.crop.patch_px)
    with FakeTensorMode(), torch.device("cpu"):
        autoencoder = frozen(Autoencoder(config.model), config.freeze)
        found = {"autoencoder": flops_of(lambda: forward(autoencoder, config, 1).pred.sum().backward())}
        pred, target = torch.empty(patch, requires_grad=True), torch.empty(patch)
        if config.loss.lpips > 0:
            lpips = Lpips.untrained(config.loss.lpips_net)
            found["LPIPS"] = flops_of(lambda: lpips(pred, target).sum().backward())
        if config.loss.gan > 0:
            discriminator = PatchDiscriminator(config.discriminator)
            own = flops_of(lambda: (discriminator(target) + discriminator(target)).sum().backward())
            discriminator.requires_grad_(False)
            found["discriminator"] = own + flops_of(lambda: discriminator(pred).sum().backward())
    return found


def flops_of(run: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):  # the counter knows no fused attention
        run()
    return counter.get_total_flops()


def describe(config: AutoencoderTrainingConfig, *, workers: int, manifest: Manifest | None = None) -> str:
    """The plan as a few lines of text; of a dataset's manifest also epochs and bytes to read."""
    plan = plan_autoencoder(config, workers=workers)
    flops, steps, batch = model_flops(config), config.loop.steps, config.loop.batch
    work = sum(flops.values()) / TFLOP
    lines = [f"{name:<14}{count:>12,} parameters" for name, count in plan.parameters.items()]
    lines += [
        f"{'in all':<14}{sum(plan.parameters.values()):>12,} parameters",
        "",
        f"memory a worker ({config.loop.batch // workers} of {config.loop.batch} samples a step, {config.loop.precision}):",
        f"  weights {plan.weights_bytes / MIB:,.0f} MiB + gradients and Adam {plan.optimizer_bytes / MIB:,.0f} MiB"
        f" + the generator's activations {plan.activation_bytes / MIB:,.0f} MiB = {plan.total_bytes / MIB:,.0f} MiB",
        f"work: {work:.3g} TFLOP a sample (" + ", ".join(f"{name} {count / TFLOP:.3g}" for name, count in flops.items()) + ")",
        f"{steps:,} steps x {batch} = {steps * batch:,} samples = {steps * batch * work:,.0f} TFLOP: "
        f"{steps * batch * work / 100 / 3600:,.1f} hours at 100 TFLOP/s over all workers",
    ]
    return "\n".join(lines + (reading(config, workers=workers, manifest=manifest) if manifest else []))


def reading(config: AutoencoderTrainingConfig, *, workers: int, manifest: Manifest) -> list[str]:
    """Lines on epochs and on bytes fetched. Raises as `Order` does where the dataset does not fit the crops."""
    order = Order(manifest, config.crop, batch=config.loop.batch, seed=config.loop.seed)
    photos, size = len(order.photo_rows), sum(shard.bytes for shard in manifest.shards)
    epochs = config.loop.steps / order.epoch_steps
    once = config.loader.cache_bytes >= size
    fetched = min(epochs, workers) * size if once else epochs * size
    return [f"data: {photos:,} of {len(manifest.split):,} photos train, an epoch is {order.epoch_steps:,} steps: "
            f"{epochs:,.1f} epochs",
            f"  shards of {size / GIB:,.1f} GiB; to fetch from a store: {fetched / GIB:,.1f} GiB in all, because a worker's "
            f"cache of {config.loader.cache_bytes / GIB:,.1f} GiB " + ("holds them" if once else "does not hold them")]
