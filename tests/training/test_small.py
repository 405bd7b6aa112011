"""The preset `small` on a CPU: its networks at full width, twenty steps, a checkpoint that renders."""

import numpy as np
import pytest
import torch
from data import photographs
from pictures import encoded

from infd import checkpoint
from infd.config import IngestConfig
from infd.data.snapshot import write_dataset
from infd.generation.load import load_autoencoder
from infd.losses.perceptual import Lpips
from jobs import train_ae

STEPS = 20


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_small_trains_twenty_steps_without_a_gpu(tmp_path, monkeypatch, caplog):
    """One sample a step in float32, not compiled; LPIPS is as large as the real one, but of random weights."""
    caplog.set_level("INFO")
    monkeypatch.setattr("infd.training.autoencoder_run.required_weights", lambda config: Lpips.untrained(config.loss.lpips_net))
    monkeypatch.setattr("pipelines.train.required_weights", lambda config: None)
    monkeypatch.setattr("infd.training.autoencoder_run.used_weights", lambda config: {})
    dataset, run = str(tmp_path / "ds"), str(tmp_path / "run")
    sources = [(f"{n}.png", encoded(photographs.mosaic(700 + n, 512))) for n in range(6)]
    write_dataset(sources, dataset, IngestConfig(val_fraction=0.2))
    argv = ["small", "--dataset", dataset, "--run", run, "--no-ray", "--loop.steps", str(STEPS), "--loop.batch", "1",
            "--loop.precision", "float32", "--loop.no-compiled", "--loss.gan-from-step", "11", "--loop.log-every", "5",
            "--loop.checkpoint-every", "10", "--loop.validate-every", "20", "--loop.validate-samples", "2",
            "--loop.preview-every", "20", "--loop.preview-photos", "1", "--loop.preview-px", "256",
            "--evaluation.every", "20", "--evaluation.metrics", "psnr", "--evaluation.photos", "1"]
    assert train_ae.main(argv) == 0
    found = checkpoint.load(f"{run}/checkpoints/last")
    assert found.step == STEPS and np.isfinite(found.meta["metrics"]["train/loss"])
    assert found.meta["metrics"]["train/gan_weight"] > 0
    assert (tmp_path / "run" / "previews" / f"step-{STEPS:08d}.png").exists()
    model = load_autoencoder(f"{run}/checkpoints/best")
    image = model.field(model.encode(torch.zeros(1, 3, model.lowres_px, model.lowres_px))).render(96, 80)
    assert image.shape == (1, 3, 96, 80) and image.isfinite().all()
