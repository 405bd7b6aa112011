"""Figures that papers print for the rows which our presets are, to stand beside ours.

All are pFID P/R with Inception's features over 50,000 generated images; lower is better. Names as `infd.evaluation` has them.
Source: INFD, "Image Neural Field Diffusion Models", CVPR 2024: tables 1, 2, 4, supplement table 2, and the repository's README;
how its images were made: the published scripts gen_samples.py and eval_pfid.py.
"""

from typing import NamedTuple

COLUMNS = ("pfid_256/256", "pfid_256/1024", "pfid_512/1024", "pfid_1024/1024")
IMAGES = 50_000
SAMPLING = {"sampler": "ddim", "steps": 200, "eta": 1.0, "guidance": 1.0, "weights": "average"}
"""How the paper's images were drawn: fields as our samplers have them."""
MODE, TO_8_BITS = "tile", "down"
"""And rendered: in tiles of 256 px, levels cut off rather than rounded."""
REAL_IMAGES = {"ffhq_1024": 70_000}
"""Photographs of the real set, by preset, where it is told."""


class Published(NamedTuple):
    """A row of a paper's table."""

    preset: str
    """The preset of ours that trains on the same photographs in the same way."""
    name: str
    source: str
    values: dict[str, float]
    """Metric -> value; what the paper does not print is not here."""
    same: bool
    """It is the row that the preset reproduces; else another method on the same photographs."""


def row(preset: str, name: str, source: str, *values: float | None, same: bool = False) -> Published:
    """Values in the order of COLUMNS."""
    found = {metric: value for metric, value in zip(COLUMNS, values, strict=True) if value is not None}
    return Published(preset, name, source, found, same)


PUBLISHED = (
    row("ffhq_1024", "LDM", "INFD, table 1", 4.98, None, None, None),
    row("ffhq_1024", "LDM + LIIF", "INFD, table 1", None, 56.65, 17.83, 8.97),
    row("ffhq_1024", "LDM + ITSRN-RDN", "INFD, table 1", None, 51.73, 17.94, 8.02),
    row("ffhq_1024", "LDM + SwinIR-LTE", "INFD, table 1", None, 52.62, 17.72, 9.09),
    row("ffhq_1024", "LDM + Real-ESRGAN", "INFD, table 1", None, 18.38, 18.46, 16.04),
    row("ffhq_1024", "LDM, retrained by INFD's authors", "INFD, table 1", 6.02, None, None, None),
    row("ffhq_1024", "INFD", "INFD, table 1", 5.34, 8.07, 6.64, 5.57, same=True),
    row("ffhq_1024", "INFD, released weights", "INFD, README", None, 7.91, 6.73, 5.71, same=True),
    row("ffhq_6k_mix", "INFD, 6K-Mix", "INFD, table 4", None, 16.27, 10.8, 11.3),
    row("ffhq_6k_mix", "INFD, 6K-Mix, balanced", "INFD, table 4", None, 12.41, 7.74, 6.9, same=True),
    row("ffhq_6k_mix", "INFD, 6K-Mix, released weights", "INFD, README", None, 10.99, 7.52, 6.80, same=True),
    row("mountains_2k", "LDM + Real-ESRGAN", "INFD, table 2", None, 17.36, 15.11, 10.39),
    row("mountains_2k", "AnyRes-GAN", "INFD, supplement, table 2", None, 6.17, 4.02, 3.25),
    row("mountains_2k", "INFD", "INFD, table 2", None, 7.53, 6.84, 5.13, same=True),
)


def published(presets: set[str]) -> list[Published]:
    """The rows of these presets."""
    return [one for one in PUBLISHED if one.preset in presets]
