"""The protocols, each a config that holds every choice: what the published figures are made of, by name.

`fid`, `pfid_infd`, `pfid_anyres`: distances between two sets. `reconstruction`, `super_resolution`: pairs of images.
`consistency`: one set rendered at several sides. `spectra`: detail at each frequency.
"""

from dataclasses import dataclass
from typing import Literal

from infd.config import require
from infd.evaluation.consistency import Resize
from infd.evaluation.crops import Crops, OneCrop, RandomScales, WholeImages
from infd.evaluation.features import NetworkConfig
from infd.evaluation.kid import KidConfig
from infd.evaluation.precision_recall import PrecisionRecallConfig
from infd.evaluation.sources import Resample

DEFAULT_NETWORK = NetworkConfig()
DistanceName = Literal["frechet", "kid", "precision_recall"]
PairMetric = Literal["psnr", "psnr_y", "ssim", "ssim_y", "lpips_vgg", "lpips_alex"]


@dataclass(frozen=True, kw_only=True)
class Distances:
    """Distances between a real set (a) and another (b) in the features of a network."""

    name: str
    """Of the protocol."""
    crops: Crops
    """Which pixels of which image."""
    metrics: tuple[DistanceName, ...] = ("frechet",)
    """frechet is called FID with Inception's features alone; with others frechet[network]."""
    network: NetworkConfig = DEFAULT_NETWORK
    """Which features."""
    seeds: tuple[int, ...] = (0,)
    """One plan of crops each; several give mean and spread. Whole images have no use for more than one."""
    count_a: int = 0
    """Real images, the first by name; 0: all."""
    count_b: int = 0
    """Images of the other set, the first by name; 0: all. Papers' @50K and @5K."""
    min_images: int = 2
    """Fewer images or patches on a side are refused."""
    ddof: Literal[0, 1] = 1
    """Covariances are divided by N - ddof: 1 as INFD and torch-fidelity, 0 as AnyRes-GAN."""
    kid: KidConfig = KidConfig()
    precision_recall: PrecisionRecallConfig = PrecisionRecallConfig()
    batch: int = 32
    """Images through the network at once; the last digits depend on it."""

    def __post_init__(self) -> None:
        require(bool(self.metrics), "metrics", self.metrics, "must name at least one")
        require(bool(self.seeds), "seeds", self.seeds, "must name at least one")
        require(len(set(self.seeds)) == len(self.seeds), "seeds", self.seeds, "must differ from each other")
        require(len(self.seeds) == 1 or not isinstance(self.crops, WholeImages), "seeds", self.seeds,
                "whole images are not drawn; name one seed")
        require(self.count_a >= 0, "count_a", self.count_a, "must be at least 0")
        require(self.count_b >= 0, "count_b", self.count_b, "must be at least 0")
        require(self.min_images >= 2, "min_images", self.min_images, "must be at least 2")
        require(self.batch >= 1, "batch", self.batch, "must be at least 1")


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Nearness of images (b) to the truth (a), matched by name."""

    name: str
    """Of the protocol."""
    metrics: tuple[PairMetric, ...] = ("psnr", "ssim", "lpips_alex")
    sizes: tuple[int, ...] = ()
    """Sides at which pairs are compared: the centre square of each, brought to it; empty: as they are, of equal sizes."""
    resample: Resample = "lanczos"
    """How they are brought there, and from there to an encoder's side: bicubic (PIL's, antialiased) as IND-LDM."""
    psnr_pool: int = 1
    """Pairs, in order, whose squared errors are averaged before decibels are taken; IND-LDM's script has 8."""
    border_px: int = 0
    """Pixels at each side that PSNR leaves out."""
    count: int = 0
    """Pairs, the first by name; 0: all."""
    weights: str = ""
    """Folder of LPIPS' weights; empty: the usual one."""

    def __post_init__(self) -> None:
        require(bool(self.metrics), "metrics", self.metrics, "must name at least one")
        require(all(size >= 16 for size in self.sizes), "sizes", self.sizes, "must be at least 16 each")
        require(len(set(self.sizes)) == len(self.sizes), "sizes", self.sizes, "must differ from each other")
        require(self.psnr_pool >= 1, "psnr_pool", self.psnr_pool, "must be at least 1")
        require(self.border_px >= 0, "border_px", self.border_px, "must be at least 0")
        require(self.count >= 0, "count", self.count, "must be at least 0")


@dataclass(frozen=True, kw_only=True)
class Consistency:
    """Whether one set of fields, rendered at several sides, shows the same images; a source a side, matched by name."""

    name: str = "consistency"
    """Of the protocol."""
    resizes: tuple[Resize, ...] = ("lanczos", "nearest")
    """How a render is brought to another's side: nearest as ScaleParty, lanczos antialiased."""
    count: int = 0
    """Fields, the first by name; 0: all."""

    def __post_init__(self) -> None:
        require(bool(self.resizes), "resizes", self.resizes, "must name at least one")
        require(self.count >= 0, "count", self.count, "must be at least 0")


@dataclass(frozen=True, kw_only=True)
class Spectra:
    """Radially averaged power spectra of crops of both sets."""

    crops: OneCrop
    """Which pixels of which image."""
    name: str = "spectra"
    """Of the protocol."""
    seed: int = 0
    """Of the crops."""
    count_a: int = 0
    """Images, the first by name; 0: all."""
    count_b: int = 0
    """Images of the other set, the first by name; 0: all."""

    def __post_init__(self) -> None:
        require(self.count_a >= 0, "count_a", self.count_a, "must be at least 0")
        require(self.count_b >= 0, "count_b", self.count_b, "must be at least 0")


Protocol = Distances | Pairs | Consistency | Spectra


# ---------------------------------------------------------------- by name


def fid(*, side: int = 0, network: NetworkConfig = DEFAULT_NETWORK) -> Distances:
    """FID over whole images: as they are, or brought to `side`; the network resizes to its own input."""
    return Distances(name="fid", crops=WholeImages(side=side), network=network)


def pfid_infd(p: int, r: int, *, seeds: tuple[int, ...] = (0,), network: NetworkConfig = DEFAULT_NETWORK) -> Distances:
    """pFID P/R of INFD: images at side R, one random P x P crop each; 256/1024 is the papers' 256/1K."""
    return Distances(name="pfid_infd", crops=OneCrop(p=p, r=r), seeds=seeds, network=network)


def pfid_anyres(p: int, r_min: int, r_max: int = 0, *, count: int = 50_000, seeds: tuple[int, ...] = (0,),
                network: NetworkConfig = DEFAULT_NETWORK) -> Distances:
    """pFID of AnyRes-GAN: patches of random scale, the same scales and places on both sides, covariances divided by N."""
    crops = RandomScales(p=p, r_min=r_min, r_max=r_max, count=count)
    return Distances(name="pfid_anyres", crops=crops, seeds=seeds, ddof=0, network=network)


def reconstruction(*sizes: int) -> Pairs:
    """PSNR, SSIM and LPIPS of reconstructions against the photographs, at these sides; none: as they are."""
    return Pairs(name="reconstruction", metrics=("psnr", "ssim", "lpips_vgg", "lpips_alex"), sizes=sizes)


def super_resolution(size: int = 0) -> Pairs:
    """IND-LDM's figures: PSNR over RGB from errors pooled over 8 images, LPIPS (AlexNet); and Y beside them.

    The truth is the centre square, bicubic to `size`, and what an encoder sees is made from that; 0: images as they are.
    """
    return Pairs(name="super_resolution", metrics=("psnr", "psnr_y", "ssim_y", "lpips_alex"), sizes=(size,) if size else (),
                 psnr_pool=8, resample="bicubic")


def spectra(p: int, r: int) -> Spectra:
    """Spectra of one P x P crop of each image at side R."""
    return Spectra(crops=OneCrop(p=p, r=r))
