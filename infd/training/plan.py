"""What a training run will cost, computed without weights or network (`--dry-run`); with a dataset, also what it reads."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from infd.config import AutoencoderTrainingConfig, DiffusionTrainingConfig, LoaderConfig, LoopConfig
from infd.data.latents import latent_crop
from infd.data.order import Order
from infd.data.snapshot import Manifest
from infd.losses.perceptual import Lpips
from infd.models.autoencoder import Autoencoder, AutoencoderOutput
from infd.models.denoiser import Denoiser
from infd.models.discriminator import PatchDiscriminator
from infd.training.autoencoder import frozen

MIB, GIB = 1 << 20, 1 << 30
TFLOP = 1e12
CAPTION_TOKENS = 77
"""Of a caption's embedding, where a plan has none to look at: CLIP's."""


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

    Activations are those of the moment that has most: the generator's, and beside them LPIPS' or the discriminator's.
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
    return Plan(counts, weights_bytes=(sum(counts.values()) + average + lpips_parameters(config)) * 4,
                optimizer_bytes=trained * 3 * 4,                                             # gradients and two moments
                activation_bytes=activation_bytes(config, workers=workers))


def activation_bytes(config: AutoencoderTrainingConfig, *, workers: int) -> int:
    """Bytes that autograd keeps for the generator's backward of one worker's share of the batch, while LPIPS or the
    discriminator, whichever takes more, is walked back to the prediction.

    Counted on tensors without memory, each storage once: no guess, but for a compiled or a GPU's own kernels.
    """
    batch = max(config.loop.batch // workers // config.loop.accumulate, 1)
    with FakeTensorMode(), torch.device("cpu"):
        autoencoder, bfloat16 = frozen(Autoencoder(config.model), config.freeze), config.loop.precision == "bfloat16"
        patch = (batch, 3, config.crop.patch_px, config.crop.patch_px)
        pred, target, beside = torch.empty(patch, requires_grad=True), torch.empty(patch), [0]
        if config.loss.lpips > 0:
            lpips = Lpips.untrained(config.loss.lpips_net)
            beside.append(kept_bytes(lpips, lambda: lpips(pred, target), bfloat16=bfloat16))
        if config.loss.gan > 0:
            discriminator = PatchDiscriminator(config.discriminator)
            beside.append(kept_bytes(discriminator, lambda: discriminator(pred), bfloat16=bfloat16))
        return max(beside) + kept_bytes(autoencoder, lambda: forward(autoencoder, config, batch), bfloat16=bfloat16)


def lpips_parameters(config: AutoencoderTrainingConfig) -> int:
    """Of the frozen network of the perceptual loss."""
    if config.loss.lpips == 0:
        return 0
    with FakeTensorMode(), torch.device("cpu"):
        return sum(parameter.numel() for parameter in Lpips.untrained(config.loss.lpips_net).parameters())


def kept_bytes(network: nn.Module, run: Callable[[], object], *, bfloat16: bool) -> int:
    """Bytes of what autograd keeps of `run`, each storage once, without the network's weights."""
    kept: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage.nbytes()
        return tensor

    weights = {parameter.untyped_storage()._cdata for parameter in network.parameters()}
    with (torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor),
          torch.autocast("cpu", torch.bfloat16, enabled=bfloat16)):
        output = run()
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


def plan_denoiser(config: DiffusionTrainingConfig, *, side: int, workers: int) -> Plan:
    """The same for stage two on latents of side l. The autoencoder takes no part in its steps."""
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in Denoiser(config.model).parameters())
    batch = max(config.loop.batch // workers // config.loop.accumulate, 1)
    bfloat16 = config.loop.precision == "bfloat16"
    with FakeTensorMode(), torch.device("cpu"):
        denoiser = Denoiser(config.model)
        kept = kept_bytes(denoiser, lambda: denoise(denoiser, side, batch), bfloat16=bfloat16)
    copies = 1 + bool(config.optimizer.ema_decay) + 2 * config.optimizer.posthoc
    return Plan({"denoiser": count}, weights_bytes=count * 4 * copies,
                optimizer_bytes=count * 3 * 4, activation_bytes=kept)


def denoise(denoiser: Denoiser, side: int, batch: int) -> Tensor:
    """One pass of a denoiser over inputs of the sides that training has."""
    model = denoiser.config
    labels = torch.zeros(batch, dtype=torch.int64) if model.condition == "class" else None
    context = torch.empty(batch, CAPTION_TOKENS, model.context_dim) if model.condition == "text" else None
    return denoiser(torch.empty(batch, model.z_dim, side, side), torch.zeros(batch), labels, context)


def denoiser_flops(config: DiffusionTrainingConfig, *, side: int) -> dict[str, int]:
    """As `model_flops`: the denoiser once forward and backward."""
    with FakeTensorMode(), torch.device("cpu"):
        denoiser = Denoiser(config.model)
        return {"denoiser": flops_of(lambda: denoise(denoiser, side, 1).sum().backward())}


def describe(config: AutoencoderTrainingConfig, *, workers: int, manifest: Manifest | None = None) -> str:
    """The plan of stage one as a few lines of text; of a dataset's manifest also epochs and bytes to read."""
    lines = told(plan_autoencoder(config, workers=workers), model_flops(config), config.loop, workers=workers)
    if manifest is not None:
        order = Order(manifest, config.crop, batch=config.loop.batch, seed=config.loop.seed)
        lines += reading(order, manifest, config.loop, config.loader, workers=workers)
    return "\n".join(lines)


def describe_diffusion(config: DiffusionTrainingConfig, *, workers: int, side: int, manifest: Manifest | None = None) -> str:
    """The same of stage two; the manifest is that of the latents."""
    plan, flops = plan_denoiser(config, side=side, workers=workers), denoiser_flops(config, side=side)
    lines = [f"latents of side {side}", *told(plan, flops, config.loop, workers=workers)]
    if manifest is not None:
        order = Order(manifest, latent_crop(flip=config.flip), batch=config.loop.batch, seed=config.loop.seed)
        lines += reading(order, manifest, config.loop, config.loader, workers=workers)
    return "\n".join(lines)


def told(plan: Plan, flops: dict[str, int], loop: LoopConfig, *, workers: int) -> list[str]:
    """Parameters, memory and work, a line each."""
    steps, batch, work = loop.steps, loop.batch, sum(flops.values()) / TFLOP
    lines = [f"{name:<14}{count:>12,} parameters" for name, count in plan.parameters.items()]
    lines += [
        f"{'in all':<14}{sum(plan.parameters.values()):>12,} parameters",
        "",
        f"memory a worker ({batch // workers} of {batch} samples a step, {loop.precision}):",
        f"  weights {plan.weights_bytes / MIB:,.0f} MiB + gradients and Adam {plan.optimizer_bytes / MIB:,.0f} MiB"
        f" + activations {plan.activation_bytes / MIB:,.0f} MiB = {plan.total_bytes / MIB:,.0f} MiB",
        f"work: {work:.3g} TFLOP a sample (" + ", ".join(f"{name} {count / TFLOP:.3g}" for name, count in flops.items()) + ")",
        f"{steps:,} steps x {batch} = {steps * batch:,} samples = {steps * batch * work:,.0f} TFLOP: "
        f"{steps * batch * work / 100 / 3600:,.1f} hours at 100 TFLOP/s over all workers",
    ]
    return lines


def reading(order: Order, manifest: Manifest, loop: LoopConfig, loader: LoaderConfig, *, workers: int) -> list[str]:
    """Lines on epochs and on bytes fetched."""
    photos, size = len(order.photo_rows), sum(shard.bytes for shard in manifest.shards)
    epochs = loop.steps / order.epoch_steps
    once = loader.cache_bytes >= size
    fetched = min(epochs, workers) * size if once else epochs * size
    return [f"data: {photos:,} of {len(manifest.split):,} photos train, an epoch is {order.epoch_steps:,} steps: "
            f"{epochs:,.1f} epochs",
            f"  shards of {size / GIB:,.1f} GiB; to fetch from a store: {fetched / GIB:,.1f} GiB in all, because a worker's "
            f"cache of {loader.cache_bytes / GIB:,.1f} GiB " + ("holds them" if once else "does not hold them")]
