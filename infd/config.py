"""Every setting, as frozen dataclasses. The line under a field is its help text on the command line.

Standard library only, so that `--help` is quick. A config is refused when it is made: `__post_init__` names
field, value and rule. Their one JSON form is in infd/config_form.py.
"""

from dataclasses import dataclass
from typing import Literal, TypeVar

from infd.errors import ConfigError

ConfigT = TypeVar("ConfigT")
Mode = Literal["whole", "window", "reference", "tile"]
"""Where the statistics of the renderer's norms come from: see `infd.models.fields.Field.render_tiles`."""
DEFAULT_MODE: Mode = "reference"
"""No seams, one pass over the pixels, and a part costs only itself; docs/benchmarks.md, render, has the figures."""


def require(ok: bool, field: str, value: object, rule: str) -> None:
    """Raise ConfigError naming the field, its value and the rule, unless `ok`."""
    if not ok:
        raise ConfigError(f"{field}={value}: {rule}")


# ---------------------------------------------------------------- data


@dataclass(frozen=True, kw_only=True)
class IngestConfig:
    """What becomes of a photo on its way into shards; every field here changes the bytes written."""

    tile_px: int = 256
    """Side of a pyramid tile, pixels."""
    codec: Literal["jpeg", "png", "webp-lossless"] = "jpeg"
    """How a tile is stored: jpeg is 4:4:4 and nowhere below 45 dB, rounding aside."""
    min_side_px: int = 256
    """Photos with a shorter short side are rejected; nothing is enlarged."""
    max_pixels: int = 300_000_000
    """Photos with more pixels are rejected before they are decoded."""
    max_aspect: float = 16
    """Photos whose long side is more than this many times the short side are rejected before they are decoded."""
    max_bytes: int = 2 << 30
    """Source files with more bytes are rejected before they are read."""
    shard_bytes: int = 128 << 20
    """A shard is closed when its tiles reach this many bytes."""
    unit_bytes: int = 256 << 20
    """A unit of work (one task) is cut when its source files reach this many bytes."""
    unit_photos: int = 512
    """A unit of work holds at most this many source files."""
    val_fraction: float = 0.01
    """Share of photos, chosen by the hash of their bytes, that training never sees."""

    def __post_init__(self) -> None:
        require(64 <= self.tile_px <= 1024, "tile_px", self.tile_px, "must lie in 64 to 1024")
        require(self.min_side_px >= 16, "min_side_px", self.min_side_px, "must be at least 16")
        require(self.max_aspect >= 1, "max_aspect", self.max_aspect, "must be at least 1")
        require(0 <= self.val_fraction < 1, "val_fraction", self.val_fraction, "must lie in [0, 1)")
        for name in ("max_pixels", "max_bytes", "shard_bytes", "unit_bytes", "unit_photos"):
            require(getattr(self, name) > 0, name, getattr(self, name), "must be above 0")


@dataclass(frozen=True, kw_only=True)
class CropConfig:
    """Which crop of a photo is a training sample. Source: INFD section 4.2; published sampler."""

    patch_px: int = 256
    """P: side of the patch that the renderer is trained on, pixels."""
    lowres_px: int = 256
    """Side of the encoder's input, the whole view, pixels."""
    r_min: int = 256
    """Smallest side r to which a view is resampled; at least patch_px."""
    r_max: int = 1024
    """Largest side r; a photo's own short side bounds it too."""
    p_whole: float = 0.0
    """Probability of r = patch_px, so that the patch is the whole view."""
    p_max: float = 0.0
    """Probability (where not whole) of r = min(short side, r_max)."""
    p_max_late: float = 0.0
    """p_max in the late phase: the papers' high-resolution phase."""
    late_from_step: int | None = None
    """First step of the late phase; steps count from 1; None: there is none."""
    balance_group: str = ""
    """Label of photos that make up the share balance_p of the samples, however many they are; empty: no balance."""
    balance_p: float = 0.5
    """That share; in every 64 samples of a slot it holds to the nearest whole number."""
    view: Literal["center", "random"] = "center"
    """Where the square view lies along the photo's long side."""
    flip: bool = False
    """Mirror every other view, left to right, at random; the published code does not."""

    def __post_init__(self) -> None:
        require(self.patch_px >= 16, "crop.patch_px", self.patch_px, "must be at least 16")
        require(self.r_min >= self.patch_px, "crop.r_min", self.r_min, f"must be at least patch_px={self.patch_px}")
        require(self.r_max >= self.r_min, "crop.r_max", self.r_max, f"must be at least r_min={self.r_min}")
        require(1 / 64 <= self.balance_p <= 63 / 64, "crop.balance_p", self.balance_p, "must lie in [1/64, 63/64]")
        for name in ("p_whole", "p_max", "p_max_late"):
            require(0 <= getattr(self, name) <= 1, f"crop.{name}", getattr(self, name), "must lie in [0, 1]")
        require(self.p_max_late == 0 or self.late_from_step is not None, "crop.late_from_step", self.late_from_step,
                f"must say from which step p_max_late={self.p_max_late:g} holds")
        require(self.late_from_step is None or self.late_from_step >= 1, "crop.late_from_step", self.late_from_step,
                "must be at least 1; steps count from 1")
        require(16 <= self.lowres_px <= 1024, "crop.lowres_px", self.lowres_px, "must lie in 16 to 1024")


@dataclass(frozen=True, kw_only=True)
class LoaderConfig:
    """How samples reach the training step; no field here changes a number."""

    threads: int = 2
    """Threads that decode and resize, in each worker."""
    prefetch_batches: int = 4
    """Batches made ahead."""
    cache_dir: str = ""
    """Folder for shards fetched from a bucket; empty: a temporary one, removed at the end."""
    cache_bytes: int = 20 << 30
    """Bound of the shards kept by each worker, bytes."""

    def __post_init__(self) -> None:
        require(self.threads >= 1, "loader.threads", self.threads, "must be at least 1")
        require(self.prefetch_batches >= 1, "loader.prefetch_batches", self.prefetch_batches, "must be at least 1")


# ---------------------------------------------------------------- models


@dataclass(frozen=True, kw_only=True)
class AutoencoderConfig:
    """Encoder E, quantizer Q, decoder D and renderer R (CLIF). Source: INFD sections 4.1, 4.2, supplement J.1."""

    widths: tuple[int, ...] = (128, 256, 512)
    """Channels of E's levels from fine to coarse; D mirrors them. Each level past the first halves the side."""
    blocks: int = 2
    """ResBlocks a level in E; D has one more."""
    mid_attention: bool = True
    """One head of attention at the coarsest level of E and of D."""
    z_dim: int = 3
    """Channels of the latent z."""
    quantizer: Literal["vq", "kl", "fsq"] = "vq"
    """vq: a codebook; kl: a diagonal Gaussian (E then ends in 2 x z_dim channels); fsq: rounding, nothing learned (Mentzer et
    al. 2024)."""
    codebook_size: int = 8192
    """Codes of the vq quantizer."""
    vq_beta: float = 0.25
    """Weight of one term of the vq loss."""
    vq_beta_on: Literal["codebook", "commitment"] = "codebook"
    """codebook: as the published code runs; commitment: as VQ-VAE states it."""
    fsq_levels: tuple[int, ...] = (8, 8, 8, 5)
    """fsq: levels of each channel of z; their product counts as the size of a codebook."""
    renderer_dim: int = 256
    """Hidden channels of CLIF."""
    renderer_blocks: int = 2
    """ResBlocks of CLIF; its reach is 2 + 2 x this, in pixels (6 as published)."""
    norm_groups: int = 32
    """Groups of every GroupNorm."""
    padding: Literal["zeros", "replicate"] = "zeros"
    """Padding of E's and D's convolutions: zeros as published; replicate leaves no frame at the border of small models."""

    def __post_init__(self) -> None:
        require(len(self.widths) >= 2, "model.widths", self.widths, "needs at least 2 levels")
        for width in (*self.widths, self.renderer_dim):
            require(width % self.norm_groups == 0, "model.norm_groups", self.norm_groups,
                    f"must divide every width; it does not divide {width}")
        require(self.blocks >= 1, "model.blocks", self.blocks, "must be at least 1")
        require(self.renderer_blocks >= 0, "model.renderer_blocks", self.renderer_blocks, "must not be negative")
        require(self.z_dim >= 1, "model.z_dim", self.z_dim, "must be at least 1")
        require(self.codebook_size >= 2, "model.codebook_size", self.codebook_size, "must be at least 2")
        if self.quantizer == "fsq":
            require(len(self.fsq_levels) == self.z_dim, "model.fsq_levels", self.fsq_levels,
                    f"needs a number for each of the z_dim={self.z_dim} channels of z")
            require(min(self.fsq_levels) >= 2, "model.fsq_levels", self.fsq_levels, "must be at least 2 each")

    @property
    def factor(self) -> int:
        """Side of lowres over side of z."""
        return 2 ** (len(self.widths) - 1)

    @property
    def phi_dim(self) -> int:
        """Channels of phi: D ends at its finest width, without its last layer."""
        return self.widths[0]


@dataclass(frozen=True, kw_only=True)
class DiscriminatorConfig:
    """PatchGAN on patches. Source: INFD supplement J.1; pix2pix."""

    base_dim: int = 64
    """Channels of the first convolution; doubled up to 8 times that."""
    layers: int = 3
    """Middle convolutions."""
    norm: Literal["batch", "group", "none"] = "batch"
    """Of the middle convolutions: batch as published, over all workers on GPUs and over each alone on CPUs; group and none
    do not depend on how a batch is shared among workers and micro-batches."""

    def __post_init__(self) -> None:
        require(self.base_dim >= 1, "discriminator.base_dim", self.base_dim, "must be at least 1")
        require(self.layers >= 1, "discriminator.layers", self.layers, "must be at least 1")


# ---------------------------------------------------------------- training


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Weights of the stage-one losses. Source: published code; INFD equation 2 writes the plain sum."""

    l1: float = 1.0
    """Mean absolute difference of prediction and patch."""
    lpips: float = 1.0
    """LPIPS distance; 0 needs no network weights."""
    lpips_net: Literal["vgg", "alex"] = "vgg"
    """Trunk of LPIPS."""
    quantizer: float = 1.0
    """vq: the quantizer's loss. kl: the divergence summed over z (Stable Diffusion's VAEs use 1e-6)."""
    gan: float = 0.75
    """Hinge GAN, times the adaptive weight; 0: no discriminator is built."""
    gan_from_step: int = 1
    """First step with the GAN; steps count from 1."""
    adaptive_gan_weight: bool = True
    """Balance the GAN against L1 + LPIPS by their gradients at CLIF's last convolution."""
    fresh_fake: bool = False
    """Render the discriminator's fake anew with the updated weights, as published; False reuses the first."""
    query_pad_px: int = 0
    """Render that many pixels more around each patch, clipped at the view's border, and crop: training then sees the
    context that tiled rendering has. 0 as published; 8 is the published padding of tiles."""
    gan_loss: Literal["hinge", "relativistic"] = "hinge"
    """hinge as published; relativistic: R3GAN's pairing of real and fake, best with gradient_penalty and no norm."""
    gradient_penalty: float = 0.0
    """Gamma of R1 + R2, the penalty on the discriminator's gradient at real and at fake patches (R3GAN)."""
    scale_equivariance: float = 0.0
    """Weight of the L1 distance between the halved z, decoded and rendered, and the halved lowres (Skorokhodov et al. 2025)."""

    def __post_init__(self) -> None:
        for name in ("l1", "lpips", "quantizer", "gan", "query_pad_px", "gradient_penalty", "scale_equivariance"):
            require(getattr(self, name) >= 0, f"loss.{name}", getattr(self, name), "must not be negative")
        require(self.l1 + self.lpips > 0, "loss.l1", self.l1, "l1 and lpips cannot both be 0: nothing to learn from")
        require(self.gan_from_step >= 1, "loss.gan_from_step", self.gan_from_step, "must be at least 1; steps count from 1")
        require(self.gan > 0 or self.gradient_penalty == 0, "loss.gradient_penalty", self.gradient_penalty,
                "must be 0 with loss.gan=0, which has no discriminator to penalise")


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Adam, the same for all networks. The rate is a function of the step, so a resumed run needs no scheduler state."""

    lr: float = 3.6e-5
    """Learning rate."""
    betas: tuple[float, float] = (0.5, 0.9)
    """Adam's betas."""
    warmup_steps: int = 0
    """Steps over which the rate rises from 0."""
    decay_from_step: int | None = None
    """Step from which the rate falls linearly; None: constant, as published."""
    decay_to_step: int | None = None
    """Step at which it reaches 1% of lr."""
    weight_decay: float = 0.0
    """AdamW's decay of all weights, each step times the rate; 0: Adam."""
    clip_norm: float = 0.0
    """Largest norm of the gradient of all weights of a network; 0: not clipped, as published."""
    ema_decay: float = 0.0
    """Decay a step of a moving average of the network (Polyak and Juditsky 1992), which validation, previews and readers of
    checkpoints use; 0: none, as stage one is published."""
    posthoc: bool = False
    """Stage two: keep snapshots of two more averages beside each checkpoint, of which jobs/average.py makes one of any
    length after the run."""

    def __post_init__(self) -> None:
        require(all(0 <= beta < 1 for beta in self.betas), "optimizer.betas", self.betas, "must lie in [0, 1) each")
        require(self.lr > 0, "optimizer.lr", self.lr, "must be above 0")
        require(self.weight_decay >= 0, "optimizer.weight_decay", self.weight_decay, "must not be negative")
        require(self.clip_norm >= 0, "optimizer.clip_norm", self.clip_norm, "must not be negative")
        require(0 <= self.ema_decay < 1, "optimizer.ema_decay", self.ema_decay, "must lie in [0, 1)")
        both = (self.decay_from_step is None) == (self.decay_to_step is None)
        require(both, "optimizer.decay_to_step", self.decay_to_step, "goes with decay_from_step: set both or neither")
        if self.decay_from_step is not None and self.decay_to_step is not None:
            require(self.decay_to_step > self.decay_from_step, "optimizer.decay_to_step", self.decay_to_step,
                    f"must be above decay_from_step={self.decay_from_step}")


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """Steps, batch and rhythm, the same for every stage."""

    steps: int
    """Optimizer steps in all."""
    batch: int
    """Global batch: samples an optimizer step, over all workers."""
    accumulate: int = 1
    """Micro-batches into which each worker cuts its share of a step, to fit its memory; the update is that of the whole."""
    seed: int = 0
    """Key of the sample order, of the initial weights and of all noise."""
    precision: Literal["float32", "tf32", "bfloat16"] = "float32"
    """tf32: convolutions of NVIDIA GPUs in TensorFloat-32. bfloat16: autocast in the networks, tf32 elsewhere; weights,
    optimizer and losses stay float32."""
    compiled: bool = False
    """torch.compile the networks: needs a C++ compiler on CPUs, and a minute or two at the start."""
    channels_last: bool = False
    """Lay images and weights out channel by channel last, as convolutions want them in bfloat16 on GPUs, and on CPUs."""
    log_every: int = 50
    """Steps between two rows of metrics."""
    checkpoint_every: int = 10_000
    """Steps between two checkpoints."""
    keep_every: int = 200_000
    """Checkpoints at multiples of this are kept for ever, besides last and best."""
    validate_every: int = 50_000
    """Steps between two validations; the least validation loss is `best` where no evaluation chooses it."""
    validate_samples: int = 256
    """Crops of the val split that a validation looks at, always the same ones."""
    preview_every: int = 10_000
    """Steps between two preview pictures."""
    preview_photos: int = 4
    """Photographs in a preview, of the val split where it has any."""
    preview_px: int = 1024
    """Previews render a photograph's native size, but at most this."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "accumulate", "log_every", "checkpoint_every", "keep_every",
                     "validate_every", "validate_samples", "preview_every", "preview_photos"):
            require(getattr(self, name) >= 1, f"loop.{name}", getattr(self, name), "must be at least 1")
        require(self.preview_px >= 16, "loop.preview_px", self.preview_px, "must be at least 16")
        require(self.validate_every % self.checkpoint_every == 0, "loop.validate_every", self.validate_every,
                f"must be a multiple of checkpoint_every={self.checkpoint_every}, so that the best one is kept; set both")


@dataclass(frozen=True, kw_only=True)
class ReconstructionConfig:
    """Reconstructions of val photos while stage one trains; where they are made they choose `best`."""

    every: int = 0
    """Steps between two evaluations, a multiple of loop.checkpoint_every; 0: none."""
    photos: int = 64
    """Photos of the val split, the first of those that are large enough."""
    sizes: tuple[int, ...] = (256,)
    """Sides to which photos and renders are made, pixels."""
    metrics: tuple[Literal["lpips_vgg", "lpips_alex", "psnr", "psnr_y", "ssim", "ssim_y"], ...] = ("lpips_vgg", "psnr", "ssim")
    """The first of them, at the first size, chooses `best`. One whose weights are absent is left out with a warning."""

    def __post_init__(self) -> None:
        require(self.every >= 0, "evaluation.every", self.every, "must not be negative")
        require(self.photos >= 1, "evaluation.photos", self.photos, "must be at least 1")
        require(bool(self.metrics), "evaluation.metrics", self.metrics, "must name at least one")
        require(bool(self.sizes) and min(self.sizes) >= 16, "evaluation.sizes", self.sizes, "must be at least 16 each")


@dataclass(frozen=True, kw_only=True)
class SamplesConfig:
    """Samples against val photos while stage two trains; where they are made they choose `best`."""

    every: int = 0
    """Steps between two evaluations, a multiple of loop.checkpoint_every; 0: none."""
    images: int = 1000
    """Seeds that are drawn, 0 to images - 1, and val photos that they are compared with (fewer where there are fewer)."""
    side: int = 256
    """Of both, pixels."""
    steps: int = 50
    """Of the sampler."""
    metrics: tuple[Literal["kid", "frechet"], ...] = ("kid", "frechet")
    """The first chooses `best`: KID is unbiased at small counts, the Fréchet distance is not."""
    network: Literal["inception-v3-compat", "efficientnet-lite0", "lpips-vgg", "lpips-alex"] = "inception-v3-compat"
    """Of the features. Where its weights are absent nothing is evaluated, with a warning."""

    def __post_init__(self) -> None:
        require(self.every >= 0, "evaluation.every", self.every, "must not be negative")
        require(self.images >= 2, "evaluation.images", self.images, "must be at least 2")
        require(self.side >= 16, "evaluation.side", self.side, "must be at least 16")
        require(self.steps >= 1, "evaluation.steps", self.steps, "must be at least 1")
        require(bool(self.metrics), "evaluation.metrics", self.metrics, "must name at least one")


def require_checkpoints(every: int, loop: LoopConfig) -> None:
    """Raise ConfigError unless each evaluation falls on a checkpoint, which alone can be `best`."""
    require(every % loop.checkpoint_every == 0, "evaluation.every", every,
            f"must be a multiple of loop.checkpoint_every={loop.checkpoint_every}")


@dataclass(frozen=True, kw_only=True)
class AutoencoderTrainingConfig:
    """All of a stage-one run but where it reads and writes."""

    model: AutoencoderConfig
    """The networks."""
    discriminator: DiscriminatorConfig = DiscriminatorConfig()
    """The patch discriminator."""
    crop: CropConfig
    """The law of a training sample."""
    loss: LossConfig = LossConfig()
    """Loss weights."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """Adam."""
    loop: LoopConfig
    """Steps and batch."""
    loader: LoaderConfig = LoaderConfig()
    """Reading."""
    evaluation: ReconstructionConfig = ReconstructionConfig()
    """Figures while it trains."""
    freeze: tuple[str, ...] = ()
    """Parts of the autoencoder that keep the weights they start from: encoder (with quant_conv and quantizer), decoder."""

    def __post_init__(self) -> None:
        require(not self.optimizer.posthoc, "optimizer.posthoc", self.optimizer.posthoc, "is of stage two alone")
        require_checkpoints(self.evaluation.every, self.loop)
        for part in self.freeze:
            require(part in ("encoder", "decoder"), "freeze", part, "expected encoder or decoder")
        side, factor = self.crop.lowres_px, self.model.factor
        require(side % factor == 0, "crop.lowres_px", side, f"must be divisible by the encoder's factor {factor}")
        if self.loss.gan > 0:
            least = 2 ** (self.discriminator.layers + 2)
            require(self.crop.patch_px >= least, "crop.patch_px", self.crop.patch_px,
                    f"must be at least {least} for a discriminator of {self.discriminator.layers} layers")
        if self.loss.gan > 0 and self.loss.gradient_penalty > 0:
            require(self.discriminator.norm != "batch", "discriminator.norm", self.discriminator.norm,
                    "must be group or none with loss.gradient_penalty, which is of each patch alone")
        if self.loss.scale_equivariance > 0:
            require(side % (2 * factor) == 0, "crop.lowres_px", side,
                    f"must be divisible by {2 * factor}, so that scale_equivariance can halve z")


# ---------------------------------------------------------------- stage two


@dataclass(frozen=True, kw_only=True)
class DenoiserConfig:
    """The UNet over latents. Source: INFD supplement J.1."""

    widths: tuple[int, ...] = (224, 448, 672, 896)
    """Channels of the levels; each past the first halves the side of z and has attention."""
    blocks: int = 2
    """ResBlocks a level on the way down; one more on the way up."""
    head_dim: int = 32
    """Channels of an attention head."""
    norm_groups: int = 32
    """Groups of every GroupNorm."""
    z_dim: int = 3
    """Channels of the latent, as the autoencoder's."""
    condition: Literal["none", "class", "text"] = "none"
    """class: a label of each latent, added to the time's embedding; text: cross-attention to a caption's embedding."""
    classes: int = 0
    """class: how many there are."""
    context_dim: int = 0
    """text: channels of a caption's embedding, as the latent shards hold it."""

    def __post_init__(self) -> None:
        require(len(self.widths) >= 2, "model.widths", self.widths, "needs at least 2 levels")
        for width in self.widths:
            require(width % self.norm_groups == 0, "model.norm_groups", self.norm_groups,
                    f"must divide every width; it does not divide {width}")
            require(width % self.head_dim == 0, "model.head_dim", self.head_dim,
                    f"must divide every width; it does not divide {width}")
        require((self.condition == "class") == (self.classes > 0), "model.classes", self.classes,
                f"goes with condition=class, which is {self.condition}")
        require((self.condition == "text") == (self.context_dim > 0), "model.context_dim", self.context_dim,
                f"goes with condition=text, which is {self.condition}")

    @property
    def factor(self) -> int:
        """The side of z is a multiple of this."""
        return 2 ** (len(self.widths) - 1)


@dataclass(frozen=True, kw_only=True)
class DiffusionConfig:
    """How latents are made noisy and what the denoiser learns of it. Source: INFD as published; others named there."""

    objective: Literal["eps", "v", "flow"] = "eps"
    """eps: the noise, as published; v: Salimans and Ho 2022; flow: the velocity of straight paths, Liu et al. 2022."""
    schedule: Literal["linear", "scaled_linear"] = "linear"
    """eps, v: linear in beta as published, or in its root, as latent diffusion's code has it."""
    beta_from: float = 0.0015
    """eps, v: first beta."""
    beta_to: float = 0.0195
    """eps, v: last beta."""
    timesteps: int = 1000
    """eps, v: T."""
    min_snr_gamma: float = 0.0
    """eps, v: weight the loss by min(SNR, this), Hang et al. 2023; 0: not weighted, as published."""
    flow_mean: float = 0.0
    """flow: mean of the logit of t, Esser et al. 2024."""
    flow_std: float = 1.0
    """flow: its standard deviation."""
    p_unconditional: float = 0.0
    """Share of the samples whose condition is dropped, for classifier-free guidance."""
    scale: float = 1.0
    """z is divided by this before noise is added; 1 as published, 0: by the standard deviation of the latents it trains on."""

    def __post_init__(self) -> None:
        require(0 < self.beta_from <= self.beta_to < 1, "diffusion.beta_from", self.beta_from,
                f"must lie above 0 and at most at beta_to={self.beta_to}, which is below 1")
        require(self.timesteps >= 2, "diffusion.timesteps", self.timesteps, "must be at least 2")
        require(self.min_snr_gamma >= 0, "diffusion.min_snr_gamma", self.min_snr_gamma, "must not be negative")
        require(self.flow_std > 0, "diffusion.flow_std", self.flow_std, "must be above 0")
        require(0 <= self.p_unconditional < 1, "diffusion.p_unconditional", self.p_unconditional, "must lie in [0, 1)")
        require(self.scale >= 0, "diffusion.scale", self.scale, "must not be negative")


@dataclass(frozen=True, kw_only=True)
class DiffusionTrainingConfig:
    """All of a stage-two run but where it reads and writes."""

    model: DenoiserConfig = DenoiserConfig()
    """The UNet."""
    diffusion: DiffusionConfig = DiffusionConfig()
    """Noise and objective."""
    optimizer: OptimizerConfig = OptimizerConfig(lr=9.6e-5, betas=(0.9, 0.999), weight_decay=0.01, ema_decay=0.9999)
    """AdamW and the moving average, as published."""
    loop: LoopConfig
    """Steps and batch."""
    loader: LoaderConfig = LoaderConfig()
    """Reading."""
    evaluation: SamplesConfig = SamplesConfig()
    """Figures while it trains."""
    flip: bool = False
    """Take the latents of mirrored photographs for every other sample, at random; the published code does not."""
    preview_steps: int = 50
    """Steps of the sampler for previews."""

    def __post_init__(self) -> None:
        require(self.preview_steps >= 1, "preview_steps", self.preview_steps, "must be at least 1")
        require_checkpoints(self.evaluation.every, self.loop)
        require(self.model.condition != "none" or self.diffusion.p_unconditional == 0, "diffusion.p_unconditional",
                self.diffusion.p_unconditional, "must be 0 without a condition to drop")


@dataclass(frozen=True, kw_only=True)
class PlaceConfig:
    """Where a training run writes and computes; no field here changes a number."""

    run: str = ""
    """URI of the run's folder; empty: DATASET/training/PRESET-HASH. The same run again resumes."""
    start_from: str = ""
    """A checkpoint whose weights the run begins with: a folder of jobs/import_weights.py, or RUN/checkpoints/best."""
    workers: int = 1
    """Training processes; each takes loop.batch / workers samples a step."""
    device: Literal["auto", "cpu", "gpu"] = "auto"
    """auto: a GPU a worker where the cluster has that many, else the CPU."""
    max_failures: int = 3
    """Times that the workers begin again after one died or was told to stop; -1: without end, for spot machines."""
    experiment: str = "infd"
    """MLflow experiment; used where MLFLOW_TRACKING_URI is set."""
    ray: bool = True
    """--no-ray trains in this process (or under torchrun) instead of on a Ray cluster."""

    def __post_init__(self) -> None:
        require(self.workers >= 1, "workers", self.workers, "must be at least 1")
        require(self.max_failures >= -1, "max_failures", self.max_failures, "must be at least -1, which has no end")


@dataclass(frozen=True, kw_only=True)
class RunConfig(PlaceConfig):
    """A run of stage one."""

    dataset: str = ""
    """URI of the dataset; its newest snapshot is used and pinned, or the one named by "…@7"."""
    experiment: str = "infd-autoencoder"
    """MLflow experiment; used where MLFLOW_TRACKING_URI is set."""


@dataclass(frozen=True, kw_only=True)
class LatentRunConfig(PlaceConfig):
    """A run of stage two."""

    latents: str = ""
    """URI of the latents that jobs/encode_latents.py made; they are pinned."""
    experiment: str = "infd-latent-diffusion"
    """MLflow experiment; used where MLFLOW_TRACKING_URI is set."""


@dataclass(frozen=True, kw_only=True)
class LatentConfig:
    """How the photographs of a snapshot become latents."""

    dtype: Literal["float32", "float16"] = "float32"
    """float16 halves the bytes; how far it rounds is measured, told at the end and kept in the manifest."""
    flip: bool = True
    """Encode the mirrored views too: stage two can then train with flip. Twice the time and the bytes."""
    batch: int = 16
    """Views that go through the encoder at once; it changes nothing but rounding."""

    def __post_init__(self) -> None:
        require(self.batch >= 1, "batch", self.batch, "must be at least 1")


@dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """How seeds become latents, and latents images; every field here changes what is seen."""

    steps: int = 50
    """Steps of the sampler; the published way takes 200."""
    sampler: Literal["auto", "ddpm", "ddim", "dpm", "unipc", "euler", "heun"] = "auto"
    """auto: ddim, or heun for a flow. dpm (DPM-Solver++) and unipc need the fewest steps; euler and heun are for flows."""
    eta: float = 1.0
    """ddim: how much noise each step adds; 1 as published, 0: none."""
    guidance: float = 1.0
    """Above 1: away from the unconditional prediction; needs a model with classes or captions."""
    group: str = ""
    """The class to draw from, of a model with classes."""
    context: str = ""
    """The embedding (S, K) of a caption, a .npy file, for a model with captions."""
    mode: Mode = DEFAULT_MODE
    """Where the renderer's norms take their statistics: docs/generation.md. tile is the published way, with seams."""
    weights: Literal["average", "last"] = "average"
    """average: the moving average of the denoiser, where the run had one."""

    def __post_init__(self) -> None:
        require(self.steps >= 1, "steps", self.steps, "must be at least 1")
        require(0 <= self.eta <= 1, "eta", self.eta, "must lie in [0, 1]")
