"""Train the stage-two denoiser on latents; the same command again resumes.

Example: python jobs/train_ldm.py tiny --latents s3://bucket/datasets/NAME/latents/1-ab12cd34 --workers 2

A preset of your own: python jobs/train_ldm.py mine.json --latents …, where mine.json is
{"base": "ffhq_1024", "diffusion.objective": "flow"}.
"""

import sys
from dataclasses import dataclass, field
from typing import Annotated

import tyro

from infd.config import DiffusionTrainingConfig, LatentRunConfig
from infd.errors import InfdError
from infd.presets import DIFFUSION, from_file, require_known
from pipelines import logs


@dataclass(frozen=True, kw_only=True)
class TrainDiffusion:
    """Train the stage-two denoiser."""

    preset: tyro.conf.Suppress[str]
    run: Annotated[LatentRunConfig, tyro.conf.arg(name="")] = field(default_factory=LatentRunConfig)
    config: Annotated[DiffusionTrainingConfig, tyro.conf.arg(name="")]
    dry_run: bool = False
    """Print the config, parameters, memory and work; with --latents also epochs and bytes to read. Trains nothing."""
    side: int = 64
    """--dry-run without --latents: the side of z; those of the autoencoder `tiny` have 32."""


def main(argv: list[str] | None = None) -> int:
    made = {name: ((preset.__doc__ or "").splitlines()[0], TrainDiffusion(preset=name, config=preset()))
            for name, preset in DIFFUSION.items()}
    argv = sys.argv[1:] if argv is None else argv
    try:
        if argv and argv[0].endswith(".json"):
            name, config = from_file(argv[0], DIFFUSION)
            made[argv[0]] = ("A preset of your own.", TrainDiffusion(preset=name, config=config))
        require_known(argv, made)
        args = tyro.extras.overridable_config_cli(made, args=argv, description=__doc__)
        logs.to_stderr()
        if args.dry_run:
            print(dry_run(args))
            return 0
        from pipelines.train import train_diffusion

        print(train_diffusion(args.preset, args.config, args.run))
    except InfdError as error:
        print(f"train_ldm: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("train_ldm: stopped; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130
    return 0


def dry_run(args: TrainDiffusion) -> str:
    """What the run would be, as text."""
    from infd.config_form import flat
    from infd.data.latents import open_latents
    from infd.training.diffusion_run import fitted
    from infd.training.plan import describe_diffusion
    from infd.training.run import check_batch

    check_batch(args.config.loop, args.run.workers)
    latents = open_latents(args.run.latents) if args.run.latents else None
    config = fitted(args.config, latents) if latents else args.config
    plan = describe_diffusion(config, workers=args.run.workers, side=latents.shape[1] if latents else args.side,
                              manifest=latents.manifest if latents else None)
    return "\n".join([*(f"{name} = {value}" for name, value in flat(config).items()), plan])


if __name__ == "__main__":
    sys.exit(main())
