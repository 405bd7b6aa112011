"""Photographs become latents of a trained autoencoder, from which stage two trains; the same command again goes on.

Example: python jobs/encode_latents.py --dataset s3://bucket/datasets/NAME --checkpoint RUN/checkpoints/best
"""

import sys
from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from infd.config import LatentConfig
from infd.errors import InfdError
from pipelines import logs


@dataclass(frozen=True, kw_only=True)
class EncodeLatents:
    """Encode a snapshot. stdout carries the address of the latents alone."""

    dataset: str
    """The dataset: its newest snapshot, or the one named by "…@7"."""
    checkpoint: str
    """The autoencoder: a checkpoint's folder, RUN/checkpoints/best or /last."""
    out: str = ""
    """Where the latents go; empty: DATASET/latents/SNAPSHOT-HASH, so that each snapshot and checkpoint has its own (-f16,
    -plain and captions add to it)."""
    conditions: str = ""
    """A Parquet table of captions and their embeddings: columns image_id or uri, caption, embedding."""
    workers: int = 0
    """Actors; 0: one a GPU, or one a core."""
    device: Literal["auto", "cpu", "gpu"] = "auto"
    """auto: GPUs where the cluster has some."""
    ray: bool = True
    """--no-ray encodes in this process."""
    config: Annotated[LatentConfig, tyro.conf.arg(name="")] = LatentConfig()


def main(argv: list[str] | None = None) -> int:
    logs.to_stderr()
    try:
        args = tyro.cli(EncodeLatents, args=argv, description=__doc__)
        from pipelines.encode_latents import encode_latents

        print(encode_latents(args.dataset, args.checkpoint, config=args.config, out=args.out, conditions=args.conditions,
                             workers=args.workers, device=args.device, ray=args.ray))
    except InfdError as error:
        print(f"encode_latents: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("encode_latents: stopped; the same command again goes on from the shards that are done", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
