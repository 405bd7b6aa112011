"""Turn published weights into a checkpoint: python jobs/import_weights.py --from infd last-model.pth --out ckpt/"""

import sys
from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from infd.errors import InfdError
from pipelines import logs


@dataclass(frozen=True, kw_only=True)
class ImportWeights:
    """Turn published weights into a checkpoint of ours; stdout: its address.

    Example: python jobs/import_weights.py --from infd last-model.pth --out s3://bucket/ffhq
    """

    file: Annotated[str, tyro.conf.Positional]
    """The published file: a path or an s3:// address. It is read without running any code in it."""
    origin: Annotated[Literal["infd"], tyro.conf.arg(name="from")]
    """Whose layout the file has: infd is the published INFD code."""
    out: str
    """Checkpoint folder to write: a path or an s3:// address."""
    autoencoder_only: bool = False
    """Take only the autoencoder of a file that also holds a latent diffusion model."""


def main(argv: list[str] | None = None) -> int:
    args = tyro.cli(ImportWeights, args=argv, config=(tyro.conf.FlagCreatePairsOff,))
    from pipelines.importing import import_official  # here, so that --help loads neither torch nor ray

    logs.to_stderr()
    try:
        print(import_official(args.file, args.out, autoencoder_only=args.autoencoder_only))
    except InfdError as error:
        print(f"import_weights: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
