"""Which pixels of which image a figure is made of: crop plans, fixed by counters.

Image i of both sides has the same crop: the plan depends on (protocol, seed, i) and, with random scales, on the sides of
the real images; neither on workers nor on the order of reading. The published scripts draw unseeded; the law is theirs.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from infd.config import require
from infd.data.order import below, random_words, unit
from infd.evaluation.errors import EvaluationError, require_images
from infd.evaluation.sources import Source, require_side

# Purposes of a random stream (infd.data.order has 0 to 8). Never renumber: figures depend on them.
ONE_CROP, SCALES, SCALES_ORDER = 100, 101, 102
SUBCROP_PX = 299
"""Patches above this are cut to it, once. Source: AnyRes-GAN's metric code, which spares the network's downsampling."""


@dataclass(frozen=True, kw_only=True)
class WholeImages:
    """FID: every image as a whole."""

    side: int = 0
    """Centre square, Lanczos to this side before the network's own resize; 0: images as they are, all of one size."""

    def __post_init__(self) -> None:
        require(self.side == 0 or self.side >= 16, "crops.side", self.side, "must be 0 or at least 16")

    @property
    def suffix(self) -> str:
        return f"_{self.side}" if self.side else ""


@dataclass(frozen=True, kw_only=True)
class OneCrop:
    """pFID P/R of INFD: one uniformly random P x P crop of each image, images at side R. Source: INFD, section 5."""

    p: int
    """P: side of the crop, pixels."""
    r: int
    """R: side of the images, pixels; P = R is plain FID."""
    prepare: Literal["exact", "center-lanczos"] = "exact"
    """exact: every image must be R x R; center-lanczos: centre square, Lanczos down to R."""

    def __post_init__(self) -> None:
        require(self.p >= 16, "crops.p", self.p, "must be at least 16")
        require(self.r >= self.p, "crops.r", self.r, f"must be at least p={self.p}; a patch P/R (--patch) has P up to R")

    @property
    def suffix(self) -> str:
        return f"_{self.p}/{self.r}"


@dataclass(frozen=True, kw_only=True)
class RandomScales:
    """pFID of AnyRes-GAN: patches of random scale and place, the same on both sides. Source: AnyRes-GAN's metric code.

    Patch i: image i of the shuffled real set, s uniform in [r_min, min(short side, r_max)], side round(s) by Lanczos, corner
    uniform; the other side's patch i is cut at the same side and corner from an image of its own.
    """

    p: int
    """Side of a patch, pixels."""
    r_min: int
    """Smallest side of the view; at least p."""
    r_max: int = 0
    """Largest side of the view; 0: native."""
    count: int = 50_000
    """Patches; real images repeat where there are fewer, the other side needs as many images."""
    view: Literal["center", "random"] = "center"
    """Where the square view lies along the long side."""
    flip: bool = False
    """Mirror every other real view at random, as AnyRes-GAN does where its training did."""

    def __post_init__(self) -> None:
        require(self.p >= 16, "crops.p", self.p, "must be at least 16")
        require(self.r_min >= self.p, "crops.r_min", self.r_min, f"must be at least p={self.p}")
        require(self.r_max == 0 or self.r_max >= self.r_min, "crops.r_max", self.r_max,
                f"must be 0 or at least r_min={self.r_min}")
        require(self.count >= 1, "crops.count", self.count, "must be at least 1")

    @property
    def suffix(self) -> str:
        return f"_random_p{self.p}min{self.r_min}max{self.r_max}"


Crops = WholeImages | OneCrop | RandomScales


class Cut(NamedTuple):
    """The pixels of one feature vector."""

    item: int
    """Index of the image in its source."""
    side: int = 0
    """The square view is brought to this side; 0: the image as it is."""
    y: int = 0
    x: int = 0
    p: int = 0
    """Side of the patch at (y, x) of the view; 0: all of it."""
    offset: float = 0.5
    """Place of the view along the long side; 0.5: the centre."""
    flip: bool = False
    """The view is mirrored before it is cut."""
    sub_y: int = 0
    sub_x: int = 0
    sub_p: int = 0
    """Side of the part of the patch at (sub_y, sub_x) that counts; 0: all of it."""


class Plan(NamedTuple):
    """Cuts of the real side and of the other, in the order in which they are read."""

    a: list[Cut]
    b: list[Cut]


def plan(crops: Crops, a: Source, b: Source, *, seed: int = 0, count_a: int = 0, count_b: int = 0) -> Plan:
    """The cuts of both sides. count_a, count_b: that many images, the first by name; 0: all.

    Raises EvaluationError naming the file and the rule: too few images, too small ones, sizes that the protocol forbids.
    Law: the same arguments give the same plan; equal sources, of as many images as patches, have equal sides.
    """
    for source, count in ((a, count_a), (b, count_b)):
        require_images(len(source), count, what=source.uri, rule="the count that was asked for")
    sizes = count_a or len(a), count_b or len(b)
    match crops:
        case WholeImages():
            require_one_size(crops, ((a, sizes[0]), (b, sizes[1])))
            return Plan(*([Cut(item, crops.side, p=crops.side) for item in range(size)] for size in sizes))
        case OneCrop():
            require_exact(crops, ((a, sizes[0]), (b, sizes[1])))
            return Plan(*([one_crop(crops, item, seed=seed) for item in range(size)] for size in sizes))
        case RandomScales():
            return random_scales(crops, a, b, sizes, seed=seed)


def one_crop(crops: OneCrop, item: int, *, seed: int) -> Cut:
    """The crop of image `item`: corner uniform on 0 … R - P, both included."""
    rows, columns = random_words(2, seed=seed, purpose=ONE_CROP, index=item).tolist()
    corners = crops.r - crops.p + 1
    return Cut(item, crops.r, below(rows, corners), below(columns, corners), crops.p)


def random_scales(crops: RandomScales, a: Source, b: Source, sizes: tuple[int, int], *, seed: int) -> Plan:
    """Raises EvaluationError: an image below r_min (real) or below the side of its patch (other), or too few others."""
    require_images(sizes[1], crops.count, what=b.uri, rule=f"one image a patch, crops.count={crops.count},")
    left, right = [], []
    items_a = shuffled(sizes[0], crops.count, seed=seed)
    items_b = shuffled(sizes[1], crops.count, seed=seed)
    for index, (item, other) in enumerate(zip(items_a, items_b, strict=True)):
        require_side(a, item, crops.r_min)
        cut = random_cut(crops, item, a.sides(item).short, index=index, seed=seed)
        require_side(b, other, cut.side)
        left.append(cut)
        right.append(cut._replace(item=other, flip=False))
    return Plan(left, right)


def random_cut(crops: RandomScales, item: int, short: int, *, index: int, seed: int) -> Cut:
    """Patch `index`, of an image of that short side."""
    words = random_words(7, seed=seed, purpose=SCALES, index=index).tolist()
    largest = min(short, crops.r_max) if crops.r_max else short
    side = int(crops.r_min + unit(words[0]) * (largest - crops.r_min) + 0.5)
    corners, inner = side - crops.p + 1, max(crops.p - SUBCROP_PX, 0) + 1
    return Cut(
        item, side, below(words[1], corners), below(words[2], corners), crops.p,
        offset=0.5 if crops.view == "center" else unit(words[3]), flip=crops.flip and bool(words[4] >> 63),
        sub_y=below(words[5], inner), sub_x=below(words[6], inner), sub_p=SUBCROP_PX if crops.p > SUBCROP_PX else 0)


def shuffled(size: int, count: int, *, seed: int) -> list[int]:
    """`count` of `size` items: each epoch shows every item once, in an order of its own."""
    epochs = [np.argsort(random_words(size, seed=seed, purpose=SCALES_ORDER, index=epoch), kind="stable")
              for epoch in range(-(-count // size))]
    return np.concatenate(epochs)[:count].tolist()


# ---------------------------------------------------------------- rules


def require_one_size(crops: WholeImages, sets: Iterable[tuple[Source, int]]) -> None:
    """Raise EvaluationError unless all images have one size (side 0), or a short side of at least crops.side."""
    first: tuple[str, tuple[int, int]] | None = None
    for source, size in sets:
        for item in range(size):
            if crops.side:
                require_side(source, item, crops.side)
                continue
            sides = source.sides(item)
            first = first or (source.address(item), sides)
            if sides != first[1]:
                raise EvaluationError(
                    f"{source.address(item)}: {sides.width}x{sides.height}; whole images must have one size, and "
                    f"{first[0]} is {first[1][0]}x{first[1][1]}; set crops.side (--side), to which all are brought")


def require_exact(crops: OneCrop, sets: Iterable[tuple[Source, int]]) -> None:
    """Raise EvaluationError unless all images are R x R (exact), or have a short side of at least R."""
    for source, size in sets:
        for item in range(size):
            sides = source.sides(item)
            if sides.short < crops.p:
                raise EvaluationError(f"{source.address(item)}: {sides.width}x{sides.height}; smaller than the crop of "
                                      f"{crops.p} px; choose a smaller crops.p (--patch), or take the image away")
            if crops.prepare == "exact" and sides != (crops.r, crops.r):
                raise EvaluationError(
                    f"{source.address(item)}: {sides.width}x{sides.height}; crops.prepare=exact needs {crops.r}x{crops.r}; "
                    "set crops.prepare=center-lanczos (--prepare center-lanczos) to bring images to that side, or take the "
                    "image away")
            require_side(source, item, crops.r)


# ---------------------------------------------------------------- pixels


def pixels(source: Source, cut: Cut) -> np.ndarray:
    """uint8 (h, w, 3), the pixels of a cut."""
    if cut.side == 0:
        return source.read(cut.item)
    x = cut.side - cut.p - cut.x if cut.flip else cut.x
    offset: float | str = "center" if cut.offset == 0.5 else 1 - cut.offset if cut.flip else cut.offset
    patch = source.patch(cut.item, side=cut.side, y=cut.y, x=x, p=cut.p, offset=offset)
    patch = patch[:, ::-1] if cut.flip else patch
    if cut.sub_p:
        patch = patch[cut.sub_y:cut.sub_y + cut.sub_p, cut.sub_x:cut.sub_x + cut.sub_p]
    return np.ascontiguousarray(patch)
