"""Turn weights made elsewhere into a checkpoint: python jobs/import_weights.py --from infd last-model.pth --out ckpt/"""

import sys
from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from infd.errors import ConfigError, InfdError
from pipelines import logs


@dataclass(frozen=True, kw_only=True)
class ImportWeights:
    """Turn weights made elsewhere into a checkpoint of ours; stdout: its address.

    Example: python jobs/import_weights.py --from infd last-model.pth --out s3://bucket/ffhq

    Example: python jobs/import_weights.py --from sd-vae sd-vae/ --licence mit --out s3://bucket/sd-start
    """

    file: Annotated[str, tyro.conf.Positional]
    """The file, or a folder in diffusers' layout: a path or an s3:// address. No code in it is run."""
    origin: Annotated[Literal["infd", "ldm-vq", "sd-vae"], tyro.conf.arg(name="from")]
    """infd: the published INFD code. ldm-vq: latent diffusion's autoencoders, VQ or KL. sd-vae: Stable Diffusion's VAE.
    The last two in CompVis's or diffusers' layout; they give E, Q and D; the renderer is fresh."""
    out: str
    """Checkpoint folder to write: a path or an s3:// address."""
    licence: str = ""
    """Licence of the weights; it goes into the checkpoint, and on into those trained from it."""
    autoencoder_only: bool = False
    """infd: take only the autoencoder of a file that also holds a denoiser, as one of stage one."""
    renderer_dim: int = 256
    """ldm-vq, sd-vae: hidden channels of the fresh renderer."""
    renderer_blocks: int = 2
    """ldm-vq, sd-vae: ResBlocks of the fresh renderer."""
    seed: int = 0
    """ldm-vq, sd-vae: key of the fresh renderer's weights."""

    def __post_init__(self) -> None:
        chosen = (self.renderer_dim, self.renderer_blocks, self.seed)
        if self.origin == "infd" and chosen != (256, 2, 0):
            raise ConfigError("renderer_dim, renderer_blocks, seed: set for --from infd, whose file has a renderer of its own; "
                              "leave them out")
        if min(self.renderer_dim, self.renderer_blocks) < 1:
            raise ConfigError(f"renderer_dim={self.renderer_dim}, renderer_blocks={self.renderer_blocks}: must be at least 1")


def main(argv: list[str] | None = None) -> int:
    try:
        args = tyro.cli(ImportWeights, args=argv, config=(tyro.conf.FlagCreatePairsOff,))
        logs.to_stderr()
        print(import_weights(args))
    except InfdError as error:
        print(f"import_weights: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def import_weights(args: ImportWeights) -> str:
    """Address of the checkpoint that was written."""
    from infd.importers import write  # here, so that --help loads no torch

    if args.origin == "infd":
        return write.import_infd(args.file, args.out, autoencoder_only=args.autoencoder_only, licence=args.licence)
    return write.import_latent_diffusion(
        args.file, args.out, origin=args.origin, licence=args.licence,
        renderer_dim=args.renderer_dim, renderer_blocks=args.renderer_blocks, seed=args.seed)


if __name__ == "__main__":
    sys.exit(main())
