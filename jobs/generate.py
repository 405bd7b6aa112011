"""Generate images of any size from a stage-two checkpoint; the same command again makes what is missing.

Example: python jobs/generate.py models:/ldm-tiny-44c7d227@best --count 64 --size 1024 --size 3000x2000 --out s3://bucket/images
"""

import sys
from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from infd.config import SampleConfig
from infd.errors import InfdError
from pipelines import logs


@dataclass(frozen=True, kw_only=True)
class Generate:
    """Generate images. stdout carries the address of a page that shows them."""

    checkpoint: tyro.conf.Positional[str]
    """A checkpoint's folder, RUN/checkpoints/best or /last, or models:/NAME@best of MLflow's registry."""
    out: str
    """Where the images go: s3://bucket/prefix or a folder."""
    count: int = 8
    """How many images a size."""
    first_seed: int = 0
    """Their seeds are first-seed, first-seed + 1, …; a seed is the same image at every size."""
    size: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Pixels: 1024 for a square, 3000x2000 for width x height; repeat it for several. None: 512."""
    zoom: str = ""
    """y,x,side as shares of the image: render this detail of it, at --size pixels."""
    grid: bool = False
    """A quick look: one page of small images, grid.png, and nothing else."""
    workers: int = 0
    """Ray workers; 0: one a GPU, or one a core."""
    device: Literal["auto", "cpu", "gpu"] = "auto"
    """auto: GPUs where there are some."""
    ray: bool = True
    """--no-ray generates in this process."""
    config: Annotated[SampleConfig, tyro.conf.arg(name="")] = SampleConfig()


def main(argv: list[str] | None = None) -> int:
    logs.to_stderr()
    try:
        args = tyro.cli(Generate, args=argv, description=__doc__)
        from pipelines.generate import Size, Zoom, generate, grid

        seeds = range(args.first_seed, args.first_seed + args.count)
        if args.grid:
            print(grid(args.checkpoint, seeds=seeds, out=args.out, config=args.config, device=args.device))
            return 0
        sizes = [Size.of(size) for size in dict.fromkeys(args.size or ("512",))]
        print(generate(args.checkpoint, seeds=seeds, sizes=sizes, out=args.out, config=args.config,
                       zoom=Zoom.of(args.zoom) if args.zoom else None, workers=args.workers, device=args.device, ray=args.ray))
    except InfdError as error:
        print(f"generate: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("generate: stopped; the same command again makes what is missing", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
