"""Render photographs through a checkpoint at any sizes.

Example: python jobs/reconstruct.py s3://bucket/…/checkpoints/best photo.jpg --sizes 256 512 1024 --out renders
"""

import sys
from dataclasses import dataclass
from typing import Annotated

import tyro

from infd.errors import InfdError
from pipelines import logs


@dataclass(frozen=True, kw_only=True)
class Reconstruct:
    """Render photographs through a checkpoint."""

    checkpoint: Annotated[str, tyro.conf.Positional]
    """Checkpoint folder, or RUN/checkpoints/last or /best."""
    images: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Image files, by path or URI; the centred square of each is taken."""
    sizes: tuple[int, ...] = (256, 512, 1024)
    """Sides of the renders, pixels."""
    out: str = "renders"
    """Folder or prefix for NAME-SIZE.png and sheet.png."""
    device: str = "cpu"
    """torch device, as cpu or cuda."""


def main(argv: list[str] | None = None) -> int:
    args = tyro.cli(Reconstruct, args=argv, description=__doc__)
    logs.to_stderr()
    try:
        from pipelines.reconstruct import reconstruct_files

        for line in reconstruct_files(args.checkpoint, args.images, sizes=args.sizes, out=args.out, device=args.device):
            print(line)
    except InfdError as error:
        print(f"reconstruct: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
