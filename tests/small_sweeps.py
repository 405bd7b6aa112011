"""Small sweeps for tests: settings, photographs, latents, and folders as trials leave them."""

import dataclasses
import json

from pictures import encoded, picture

from infd import checkpoint, storage
from infd.config import IngestConfig, LatentConfig, LatentRunConfig, LossConfig, RunConfig
from infd.config_form import flat
from infd.data.snapshot import write_dataset
from infd.models.autoencoder import Autoencoder
from infd.presets import ldm_tiny, tiny
from pipelines import sweep_summary, sweep_trials
from pipelines.encode_latents import encode_latents
from pipelines.sweep import Wish
from pipelines.sweep_plan import Plan, SweepConfig

STEPS = 20


def config(**loop):
    base = tiny()
    loop = {"steps": STEPS, "log_every": 5, "checkpoint_every": 5, "validate_every": 10, "keep_every": 5, "validate_samples": 4,
            "preview_every": 1000, "preview_photos": 1, "preview_px": 128, **loop}
    return dataclasses.replace(base, crop=dataclasses.replace(base.crop, r_max=256), loss=LossConfig(lpips=0, gan=0),
                               loop=dataclasses.replace(base.loop, **loop))


def write_photos(dataset: str, *, val_fraction: float = 0.4) -> str:
    write_dataset([(f"photo-{seed}.png", encoded(picture(300, 280, seed))) for seed in range(8)], dataset,
                  IngestConfig(val_fraction=val_fraction))
    return dataset


def encoded_latents(dataset: str, autoencoder: str, out: str) -> str:
    """Of an untrained `tiny`; here, without Ray."""
    made = tiny()
    weights = {f"autoencoder.{name}": value for name, value in Autoencoder(made.model).state_dict().items()}
    checkpoint.save(autoencoder, model=weights, train_state={}, meta={
        "stage": "autoencoder", "step": 1, "config": flat(made), "metrics": {}, "snapshot": "", "weights": {}})
    return encode_latents(dataset, autoencoder, config=LatentConfig(), out=out, ray=False)


def wish_ldm(latents: str, *vary: str, uri: str = "", seeds=(0,), concurrent=0, **loop) -> Wish:
    base = ldm_tiny()
    return Wish(stage="ldm", preset="tiny", config=dataclasses.replace(base, loop=dataclasses.replace(base.loop, **loop)),
                where=LatentRunConfig(latents=latents, device="cpu"), vary=vary, seeds=seeds, uri=uri, concurrent=concurrent)


def wish(dataset: str, uri: str = "", *vary: str, seeds=(0, 1), concurrent=0, where=None, loop=None, **sweep_options) -> Wish:
    return Wish(stage="ae", preset="tiny", config=config(**loop or {}), where=where or RunConfig(dataset=dataset, device="cpu"),
                vary=vary or ("loss.quantizer=1e-6,1e-4",), seeds=seeds, uri=uri, concurrent=concurrent,
                sweep=SweepConfig(**sweep_options))


def plan(uri: str, *vary: str, seeds=(0, 1), **sweep_options) -> Plan:
    return Plan(uri=uri, stage="ae", preset="tiny", config=config(), vary=vary or ("loss.quantizer=1,2",), seeds=seeds,
                sweep=SweepConfig(**sweep_options), snapshot="s3://b/data@1")


def save(trial, *steps: int, loss: float, best: int | None = None) -> None:
    """Checkpoints as training leaves them; validation gets better with every step."""
    for step in steps:
        meta = {"step": step, "config": flat(trial.config), "metrics": {"val/loss": loss - step / 1000, "train/loss": 1.0}}
        checkpoint.save(checkpoint.step_uri(trial.run, step), model={}, train_state={}, meta=meta)
        checkpoint.point(trial.run, "last", step)
    checkpoint.point(trial.run, "best", best or steps[-1])


def begun(trial, **figures: float) -> None:
    """A trial that has ended, with the figures of its last step."""
    metrics = {"val/loss": 1.0, "train/loss": 1.0, **figures}
    checkpoint.save(checkpoint.step_uri(trial.run, trial.steps), model={}, train_state={}, meta={
        "step": trial.steps, "config": flat(trial.config), "metrics": metrics})
    for pointer in checkpoint.POINTERS:
        checkpoint.point(trial.run, pointer, trial.steps)
    record = {"preset": "tiny", "config": flat(trial.config), "snapshot": "s3://b/data@1"}
    storage.put_atomic(f"{trial.run}/run.json", json.dumps(record).encode())


def summed(made: Plan, figures: list[float | None], states: list[str] | None = None) -> sweep_summary.Summary:
    fates = [sweep_trials.Fate(trial=trial, state=state, step=STEPS if state == "finished" else 5, figure=figure, last=figure,
                               checkpoint=f"{trial.run}/checkpoints/step-1", error="a | b" if state == "failed" else "")
             for trial, figure, state in zip(made.listed(), figures, states or ["finished"] * len(figures), strict=True)]
    return sweep_summary.summary(made, fates)
