"""Write a checkpoint in diffusers' layout, with a model card: python jobs/export.py RUN/checkpoints/best --out DIR"""

import sys
from dataclasses import dataclass
from typing import Annotated

import tyro

from infd.errors import ConfigError, InfdError
from pipelines import logs


@dataclass(frozen=True, kw_only=True)
class Export:
    """Write a checkpoint of either stage as a folder that diffusers loads, with the renderer and a model card.

    Of stage one: an autoencoder; of stage two: a pipeline. stdout: the folder's address.

    Example: python jobs/export.py s3://bucket/…/checkpoints/best --out my-autoencoder --licence cc-by-nc-4.0
    """

    checkpoint: Annotated[str, tyro.conf.Positional]
    """Checkpoint folder, RUN/checkpoints/last or /best, or models:/NAME@best."""
    out: str
    """Folder to write, new or empty: a path or an s3:// address."""
    licence: str = ""
    """Licence of these weights, for the card; empty: the card says that nobody has stated it."""
    scaling_factor: float | None = None
    """Stage one: by what a diffusion model multiplies the latents; None: the starting weights' own if E was kept as it was,
    else 1."""
    replicate_padding: bool = False
    """Export also a model of model.padding=replicate, which diffusers alone runs with zeros: the card says what to do."""

    def __post_init__(self) -> None:
        if self.scaling_factor is not None and not 0 < self.scaling_factor < float("inf"):
            raise ConfigError(f"scaling_factor={self.scaling_factor}: must be above 0 and finite")


def main(argv: list[str] | None = None) -> int:
    try:
        args = tyro.cli(Export, args=argv, config=(tyro.conf.FlagCreatePairsOff,))
        logs.to_stderr()
        from infd.exporters.diffusers_layout import export  # here, so that --help loads no torch

        print(export(args.checkpoint, args.out, licence=args.licence, scaling_factor=args.scaling_factor,
                     replicate_padding=args.replicate_padding))
    except InfdError as error:
        print(f"export: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
