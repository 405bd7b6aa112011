"""Zoom into a generated image, or into the field of a photograph, in a browser on this machine.

Example: python jobs/view.py RUN/checkpoints/best --seed 7
"""

import sys
from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from infd.config import SampleConfig
from infd.errors import InfdError
from pipelines import logs


@dataclass(frozen=True, kw_only=True)
class View:
    """Serve a page on 127.0.0.1 that renders what one looks at. stdout carries its address; Ctrl+C ends it."""

    checkpoint: tyro.conf.Positional[str]
    """A checkpoint's folder, RUN/checkpoints/best or /last, or models:/NAME@best of MLflow's registry."""
    seed: int = 0
    """Of the image, for a checkpoint of stage two."""
    image: str = ""
    """A photograph, by path or URI: look at its field instead; the centred square of it is taken."""
    size: str = "16384"
    """Pixels at the deepest zoom: 16384 for a square, 3000x2000 for width x height."""
    sample: Annotated[SampleConfig, tyro.conf.arg(name="")] = SampleConfig()
    port: int = 0
    """0: a free one."""
    device: Literal["auto", "cpu", "gpu"] = "auto"
    """auto: the GPU, where there is one."""


def main(argv: list[str] | None = None) -> int:
    args = tyro.cli(View, args=argv, description=__doc__)
    logs.to_stderr()
    try:
        from pipelines.generate import Size, cuda_or_cpu
        from pipelines.reconstruct import stem
        from pipelines.view import DeepZoom, Site, local_mode, open_field, serving

        size = Size.of(args.size)
        field = open_field(args.checkpoint, image=args.image, seed=args.seed, config=args.sample,
                           device=cuda_or_cpu(args.device))
        title = stem(args.image) if args.image else f"seed {args.seed}"
        site = Site(DeepZoom(field, size.width, size.height, statistics=local_mode(args.sample.mode)), title=title)
        with serving(site, port=args.port) as (server, address):
            print(address, flush=True)
            server.serve_forever()
    except InfdError as error:
        print(f"view: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
