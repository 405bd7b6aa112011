"""What a person asks of an evaluation, and the protocols that it means.

The wish imports the standard library alone, so that help is quick.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from infd.config import SampleConfig, require
from infd.errors import ConfigError

if TYPE_CHECKING:
    from infd.evaluation.crops import Crops, OneCrop
    from infd.evaluation.features import NetworkConfig
    from infd.evaluation.protocols import Pairs, Protocol

ProtocolName = Literal["fid", "pfid_infd", "pfid_anyres", "kid", "precision_recall", "frechet", "reconstruction",
                       "super_resolution", "consistency", "spectra"]
PairMetricName = Literal["psnr", "psnr_y", "ssim", "ssim_y", "lpips_vgg", "lpips_alex"]
NetworkName = Literal["inception-v3-compat", "efficientnet-lite0", "lpips-vgg", "lpips-alex", "torchscript"]
HELD_OUT = ("reconstruction", "super_resolution", "consistency")
"""Protocols that look at the val split of a dataset where none is named: training never saw it."""
PUBLISHED_PATCHES = 50_000
PAIRS = ("reconstruction", "super_resolution")
DISTANCES = ("fid", "pfid_infd", "pfid_anyres", "kid", "precision_recall", "frechet")
USED_BY: dict[str, tuple[str, ...]] = {
    "patch": (*DISTANCES, "spectra"), "sizes": (*PAIRS, "consistency"), "upscales": PAIRS, "low_px": PAIRS,
    "side": ("fid", "kid", "precision_recall", "frechet"),
    "real_images": (*DISTANCES, "spectra"), "crop_seeds": (*DISTANCES, "spectra"),
    "prepare": ("pfid_infd", "kid", "precision_recall", "frechet", "spectra"), "metrics": PAIRS, "border_px": PAIRS,
    "pool": PAIRS, "lpips_weights": PAIRS,
    **dict.fromkeys(("also", "network", "network_weights", "network_label", "network_sha256", "network_input_px",
                     "network_resize", "network_mean", "network_std", "batch", "kid_subsets", "kid_subset_size", "k"),
                    DISTANCES)}
"""Options that only some protocols have a use for."""
OF_TORCHSCRIPT = ("network_label", "network_sha256", "network_input_px", "network_resize", "network_mean", "network_std")


@dataclass(frozen=True, kw_only=True)
class Wish:
    """Figures of some images; the fields are the command's options."""

    protocol: ProtocolName
    """Which figures."""
    sources: tuple[str, ...]
    """The real set or the truth first, then what is judged."""
    patch: tuple[str, ...] = ()
    """Crops as P/R, pixels: 256/1024 512/1K 1K/1K; of pfid_anyres P/RMIN or P/RMIN-RMAX. A result each.
    pfid_infd, pfid_anyres, spectra need some; fid-like protocols take whole images without."""
    sizes: tuple[int, ...] = ()
    """Sides at which pairs are compared or fields rendered; empty: pairs as they are."""
    upscales: tuple[float, ...] = ()
    """In place of sizes: sides as multiples of what the encoder sees, 5.3 7 10 12 as IND-LDM."""
    low_px: int = 0
    """The side that upscales begin from; 0: that of the checkpoint's encoder."""
    metrics: tuple[PairMetricName, ...] = ()
    """Of pairs; empty: the protocol's."""
    border_px: int = 0
    """Of pairs: pixels at each side that PSNR leaves out."""
    pool: int = 0
    """Pairs whose errors are averaged before PSNR's decibels are taken; 0: the protocol's, 8 of super_resolution, else 1."""
    lpips_weights: str = ""
    """Folder of LPIPS' weights; empty: the usual one."""
    side: int = 0
    """Whole images are brought to it; 0: as they are, all of one size."""
    images: int = 0
    """Images of the judged set: seeds of a checkpoint, or the first files or pairs by name; 0: all there are.
    Of pfid_anyres the number of patches; 0: 50,000."""
    real_images: int = 0
    """Real images, the first by name; 0: all."""
    first_seed: int = 0
    """Seeds of a checkpoint are first-seed, first-seed + 1, …"""
    crop_seeds: tuple[int, ...] = (0,)
    """One plan of crops each; several give mean and spread."""
    prepare: Literal["auto", "exact", "center-lanczos"] = "auto"
    """exact: images must be R x R; center-lanczos: centre square, brought down to R; auto: the latter for datasets."""
    split: Literal["auto", "all", "train", "val"] = "auto"
    """Photos of datasets; auto: val for pairs and consistency, else all."""
    also: tuple[Literal["frechet", "kid", "precision_recall"], ...] = ()
    """More distances from the same features."""
    network: NetworkName = "inception-v3-compat"
    """Features of the distances. Only Inception's make an FID; others give frechet[NAME]."""
    network_weights: str = ""
    """Folder of the network's weights, or Inception's .pth, or the TorchScript file; empty: the usual folder."""
    network_label: str = ""
    """torchscript: the name that metrics carry."""
    network_sha256: str = ""
    """torchscript: of the file."""
    network_input_px: int = 224
    """torchscript: side of its input."""
    network_resize: Literal["bilinear", "bicubic"] = "bicubic"
    """torchscript: filter that brings images to its input, antialiased."""
    network_mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """torchscript: taken off RGB in [0, 1]; ImageNet's, as DINOv2 has it. CLIP: 0.48145466 0.4578275 0.40821073."""
    network_std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    """torchscript: RGB is then divided by it; ImageNet's. CLIP: 0.26862954 0.26130258 0.27577711."""
    kid_subsets: int = 100
    """Random subsets of the kernel distance."""
    kid_subset_size: int = 1000
    """Images of a subset."""
    k: int = 3
    """Precision and recall: balls reach to the k-th neighbour."""
    batch: int = 32
    """Images through the network at once; the last digits depend on it."""
    to_8_bits: Literal["nearest", "down"] = "nearest"
    """Of renders: to the nearest level, or down, as the published scripts write their images."""
    sample: SampleConfig = SampleConfig()
    """How seeds are drawn, and the norms of every render."""

    def __post_init__(self) -> None:
        require(self.images >= 0, "images", self.images, "must be at least 0")
        require(self.first_seed >= 0, "first_seed", self.first_seed, "must be at least 0")
        require(bool(self.sources), "sources", self.sources, "name at least one")
        require(all(one > 0 for one in self.upscales), "upscales", self.upscales, "must be above 0 each")
        require(self.pool >= 0, "pool", self.pool, "must be at least 0")

    def require_use(self) -> None:
        """Raise ConfigError for an option that is given and that the protocol has no use for."""
        require(not (self.sizes and self.upscales), "upscales", self.upscales, "say either sizes or upscales")
        given = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)
                 if field.name in USED_BY and getattr(self, field.name) != field.default}
        for name, value in given.items():
            require(self.protocol in USED_BY[name], name, value, f"protocol {self.protocol} has no use for it; leave it out")
        for name, metric in (("kid_subsets", "kid"), ("kid_subset_size", "kid"), ("k", "precision_recall")):
            require(name not in given or metric in (self.protocol, *self.also), name, given.get(name),
                    f"no {metric} was asked for; leave it out, or say --also {metric}")
        for name in OF_TORCHSCRIPT:
            require(name not in given or self.network == "torchscript", name, given.get(name),
                    f"network {self.network} has its own; leave it out, or say --network torchscript")
        require(self.protocol != "spectra" or len(self.crop_seeds) == 1, "crop_seeds", self.crop_seeds,
                "spectra are of one plan of crops; name one")
        require(not (self.side and self.patch), "side", self.side, "patches have sides of their own; leave it out")
        require(not self.low_px or bool(self.upscales), "low_px", self.low_px, "is of upscales; say some, or leave it out")

    def splits(self) -> Literal["all", "train", "val"]:
        """`split`, decided."""
        if self.split != "auto":
            return self.split
        return "val" if self.protocol in HELD_OUT else "all"


# ---------------------------------------------------------------- protocols


def protocols_of(wish: Wish, *, dataset: bool = False, low_px: int = 0) -> "list[Protocol]":
    """The protocols that a wish means: one a patch, one a size of super_resolution.

    `dataset`: the first source is one. `low_px`: what upscales are multiples of. Raises ConfigError: patches that are missing
    or cannot be.
    """
    from infd.evaluation import protocols

    if wish.prepare == "auto" and wish.protocol in USED_BY["prepare"]:
        wish = dataclasses.replace(wish, prepare="center-lanczos" if dataset else "exact")

    require(bool(low_px) or not wish.upscales, "upscales", wish.upscales, "are multiples of a side in pixels; say which")
    sizes = wish.sizes or tuple(dict.fromkeys(round(low_px * one) for one in wish.upscales))
    match wish.protocol:
        case "reconstruction":
            return [paired(protocols.reconstruction(*sizes), wish)]
        case "super_resolution":
            return [paired(protocols.super_resolution(size), wish) for size in sizes or (0,)]
        case "consistency":
            return [protocols.Consistency(count=wish.images)]
        case "spectra":
            return [protocols.Spectra(crops=one_crop(text, wish), seed=wish.crop_seeds[0], count_a=wish.real_images,
                                      count_b=wish.images) for text in needed(wish)]
    return [distances_of(wish, crops) for crops in crops_of(wish)]


def paired(protocol: "Pairs", wish: Wish) -> "Pairs":
    """A protocol of pairs with what the wish says of it."""
    from infd import storage

    return dataclasses.replace(
        protocol, count=wish.images, metrics=wish.metrics or protocol.metrics, psnr_pool=wish.pool or protocol.psnr_pool,
        border_px=wish.border_px, weights=storage.absolute(wish.lpips_weights) if wish.lpips_weights else "")


def distances_of(wish: Wish, crops: "Crops") -> "Protocol":
    """One protocol of distances."""
    from infd.evaluation.crops import RandomScales
    from infd.evaluation.kid import KidConfig
    from infd.evaluation.precision_recall import PrecisionRecallConfig
    from infd.evaluation.protocols import Distances

    first = wish.protocol if wish.protocol in ("kid", "precision_recall") else "frechet"
    random = isinstance(crops, RandomScales)
    return Distances(
        name=wish.protocol, crops=crops, metrics=tuple(dict.fromkeys((first, *wish.also))), network=network_of(wish),
        seeds=wish.crop_seeds, count_a=wish.real_images, count_b=0 if random else wish.images, ddof=0 if random else 1,
        kid=KidConfig(subsets=wish.kid_subsets, subset_size=wish.kid_subset_size),
        precision_recall=PrecisionRecallConfig(k=wish.k), batch=wish.batch)


def network_of(wish: Wish) -> "NetworkConfig":
    from infd import storage
    from infd.evaluation.features import NetworkConfig

    place = storage.absolute(wish.network_weights) if wish.network_weights else ""
    return NetworkConfig(name=wish.network, weights=place, label=wish.network_label, sha256=wish.network_sha256,
                         input_px=wish.network_input_px, resize=wish.network_resize, mean=wish.network_mean,
                         std=wish.network_std)


def crops_of(wish: Wish) -> "Sequence[Crops]":
    """Whole images, or a kind of crops for each --patch."""
    from infd.evaluation.crops import RandomScales, WholeImages

    if wish.protocol == "pfid_anyres":
        return [RandomScales(p=p, r_min=least, r_max=most, count=wish.images or PUBLISHED_PATCHES)
                for p, least, most in map(random_of, needed(wish))]
    if wish.protocol == "fid" or (wish.protocol != "pfid_infd" and not wish.patch):
        require(not wish.patch, "patch", wish.patch, "fid is of whole images; take pfid_infd for patches")
        return [WholeImages(side=wish.side)]
    return [one_crop(text, wish) for text in needed(wish)]


def needed(wish: Wish) -> tuple[str, ...]:
    """The patches. Raises ConfigError where there are none."""
    example = "256/256-1024" if wish.protocol == "pfid_anyres" else "256/1024 512/1024 1024/1024"
    require(bool(wish.patch), "patch", "missing", f"protocol {wish.protocol} needs some; say --patch {example}")
    return wish.patch


def one_crop(text: str, wish: Wish) -> "OneCrop":
    """Crops of "256/1024"."""
    from infd.evaluation.crops import OneCrop

    p, _, r = text.partition("/")
    return OneCrop(p=pixels(p, text), r=pixels(r, text), prepare="exact" if wish.prepare == "exact" else "center-lanczos")


def random_of(text: str) -> tuple[int, int, int]:
    """(P, r_min, r_max) of "256/512-1024", "256/512" (up to native) or "256" (from P on)."""
    p, _, range_of = text.partition("/")
    least, _, most = range_of.partition("-")
    return pixels(p, text), pixels(least or p, text), pixels(most, text) if most else 0


def pixels(text: str, whole: str) -> int:
    """A number of pixels; 1K is 1024, as papers write it. Raises ConfigError."""
    number, factor = (text[:-1], 1024) if text[-1:] in ("k", "K") else (text, 1)
    if not (number.isascii() and number.isdigit()):
        raise ConfigError(f"patch={whole}: expected P/R in pixels, as 256/1024 or 256/1K; of pfid_anyres P/RMIN-RMAX")
    return int(number) * factor
