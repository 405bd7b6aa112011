"""Train a preset many times, with other values of some fields and other seeds, and compare; the same command again goes on.

Example: python jobs/sweep.py ae tiny --dataset s3://bucket/datasets/NAME --vary loss.gan=0,0.5 --seeds 0 1

`ae` takes the options of jobs/train_ae.py, `ldm` those of jobs/train_ldm.py. Ranges, for --search random or optuna:
--vary optimizer.lr=1e-5..1e-3
"""

import argparse
import sys
from dataclasses import dataclass, field
from typing import Annotated, Literal

import tyro

from infd.config import AutoencoderTrainingConfig, DiffusionTrainingConfig, LatentRunConfig, RunConfig
from infd.errors import ConfigError, InfdError
from infd.presets import AUTOENCODER, DIFFUSION, from_file
from pipelines import logs
from pipelines.sweep_plan import SweepConfig

Plain = Annotated[SweepConfig, tyro.conf.arg(name="")]


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """What all sweeps have."""

    preset: tyro.conf.Suppress[str]
    vary: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """FIELD=V1,V2,… or FIELD=LOW..HIGH, once for each field; a range of a factor of 10 or more is drawn in logarithms,
    unless it ends in :linear (or :log)."""
    seeds: tuple[int, ...] = ()
    """Each point is trained once for each of these values of loop.seed; empty: the preset's own."""
    sweep: str = ""
    """Where the sweep is kept; empty: DATASET/sweeps/PRESET-HASH. The same command at the same address goes on."""
    concurrent: int = 0
    """Trials at once; 0: as many as the cluster has room for."""
    show: int | None = None
    """Print the command that trains this trial by hand, and do nothing."""
    search: Plain = field(default_factory=SweepConfig)


@dataclass(frozen=True, kw_only=True)
class SweepAutoencoder(Sweep):
    """Sweep the stage-one autoencoder. stdout carries the table."""

    run: Annotated[RunConfig, tyro.conf.arg(name="")] = field(default_factory=RunConfig)
    config: Annotated[AutoencoderTrainingConfig, tyro.conf.arg(name="")]


@dataclass(frozen=True, kw_only=True)
class SweepDiffusion(Sweep):
    """Sweep the stage-two denoiser. stdout carries the table."""

    run: Annotated[LatentRunConfig, tyro.conf.arg(name="")] = field(default_factory=LatentRunConfig)
    config: Annotated[DiffusionTrainingConfig, tyro.conf.arg(name="")]


def parsed(argv: list[str]) -> tuple[Literal["ae", "ldm"], SweepAutoencoder | SweepDiffusion]:
    """What is trained (ae or ldm), and the options. Raises ConfigError for a file that is no preset."""
    stages = {"ae": (SweepAutoencoder, AUTOENCODER), "ldm": (SweepDiffusion, DIFFUSION)}
    first = argparse.ArgumentParser(prog="sweep.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                    usage="%(prog)s {ae,ldm} PRESET [options]")
    first.add_argument("stage", choices=tuple(stages), help="sweep.py ae --help and sweep.py ae PRESET --help tell more")
    stage = first.parse_args(argv[:1]).stage
    kind, presets = stages[stage]
    made = {name: ((preset.__doc__ or "").splitlines()[0], kind(preset=name, config=preset()))
            for name, preset in presets.items()}
    if len(argv) > 1 and argv[1].endswith(".json"):
        name, config = from_file(argv[1], presets)
        made[argv[1]] = ("A preset of your own.", kind(preset=name, config=config))
    return stage, tyro.extras.overridable_config_cli(made, args=argv[1:], description=__doc__, prog=f"sweep.py {stage}")


def main(argv: list[str] | None = None) -> int:
    try:
        stage, args = parsed(sys.argv[1:] if argv is None else argv)
        logs.to_stderr()
        if args.concurrent < 0:
            raise ConfigError(f"concurrent={args.concurrent}: must not be negative")
        from pipelines import sweep, sweep_summary

        wish = sweep.Wish(stage=stage, preset=args.preset, config=args.config, where=args.run, vary=args.vary, seeds=args.seeds,
                          sweep=args.search, uri=args.sweep, concurrent=args.concurrent)
        if args.show is not None:
            print(sweep.show(wish, args.show))
            return 0
        found = sweep.run_sweep(wish)
        print(sweep_summary.text(found))
        for fate in found.failed:
            print(f"sweep: trial {fate.trial.number} failed: {fate.error}", file=sys.stderr)
        return 1 if found.failed or found.unfinished else 0
    except InfdError as error:
        print(f"sweep: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("sweep: stopped; the same command goes on: trials that are over stay, the others go on from their checkpoints",
              file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
