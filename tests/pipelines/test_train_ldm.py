"""Stage two on the real stack: latents by Ray Data's actors, a submitted job of two workers, a model that generates."""

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

from infd import checkpoint, storage
from infd.config import IngestConfig, LatentConfig, SampleConfig
from infd.config_form import flat
from infd.data.latents import open_latents
from infd.data.snapshot import write_dataset
from infd.errors import DatasetError
from infd.generation.model import load_model
from infd.models.autoencoder import Autoencoder
from infd.presets import tiny
from infra import submit
from pipelines.encode_latents import encode_latents
from pipelines.generate import Size, generate


def photo(seed: int) -> bytes:
    coarse = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8))
    buffer = io.BytesIO()
    coarse.resize((320, 280), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


@pytest.mark.slow
def test_job_latents_and_denoiser_of_a_bucket(stack, bucket, tmp_path):
    dataset, autoencoder, run = f"{bucket}/dataset-ldm", f"{bucket}/autoencoder", f"{bucket}/run-ldm"
    write_dataset([(f"photo-{seed}.jpg", photo(seed)) for seed in range(8)], dataset,
                  IngestConfig(val_fraction=0.3, shard_bytes=60_000))
    torch.manual_seed(0)
    config = tiny()
    weights = {f"autoencoder.{name}": value for name, value in Autoencoder(config.model).state_dict().items()}
    checkpoint.save(autoencoder, model=weights, train_state={}, meta={
        "stage": "autoencoder", "step": 1, "config": flat(config), "metrics": {}, "weights": {}})

    assert submit.submit_or_follow(["python", "jobs/encode_latents.py", "--dataset", dataset, "--checkpoint", autoencoder,
                                    "--workers", "2"]) == 0
    named = registered("autoencoder-ldm", autoencoder)
    made = encode_latents(dataset, named, config=LatentConfig())            # all there already
    latents = open_latents(made)
    assert len(latents) == 8 and len(latents.manifest.shards) > 1
    here = encode_latents(dataset, autoencoder, config=LatentConfig(), out=str(tmp_path / "here"), ray=False)
    assert [s.sha256 for s in open_latents(here).manifest.shards] == [s.sha256 for s in latents.manifest.shards]
    with pytest.raises(DatasetError, match="latents of two are never mixed"):
        encode_latents(dataset, autoencoder, config=LatentConfig(dtype="float16"), out=made)

    assert submit.submit_or_follow([
        "python", "jobs/train_ldm.py", "tiny", "--latents", made, "--run", run, "--workers", "2", "--loop.steps", "8",
        "--loop.log-every", "2", "--loop.checkpoint-every", "4", "--loop.validate-every", "4", "--loop.preview-every", "8",
        "--loop.preview-photos", "1", "--preview-steps", "2"]) == 0
    found = checkpoint.load(f"{run}/checkpoints/last")
    assert found.step == 8 and found.meta["latents"]["sha256"] == latents.sha256 and found.meta["mlflow_run_id"]
    assert load_model(found.uri).sample(seed=1, steps=2).render(20, 30).shape == (1, 3, 20, 30)

    generated = f"{bucket}/images"
    assert submit.submit_or_follow(["python", "jobs/generate.py", "models:/run-ldm@last", "--size", "40x30", "--out", generated,
                                    "--steps", "2", "--count", "10", "--workers", "2"]) == 0
    names = {info.uri.rsplit("/", 1)[-1] for info in storage.list_objects(generated)}
    assert names == {"run.json", "sheet.png", *(f"seed-{seed:08d}-40x30.png" for seed in range(10))}
    assert json.loads(storage.read_bytes(f"{generated}/run.json"))["checkpoint"] == found.uri
    generate(found.uri, out=str(tmp_path / "images"), config=SampleConfig(steps=2), seeds=[7, 2], sizes=[Size(40, 30)],
             ray=False)
    for seed in (2, 7):                                                     # by two workers as by none
        there, here = (pixels(f"{folder}/seed-{seed:08d}-40x30.png") for folder in (generated, tmp_path / "images"))
        assert np.abs(there - here).max() <= 1


def registered(name: str, uri: str) -> str:
    """A checkpoint by a name of the registry."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient()
    client.create_registered_model(name)
    client.set_registered_model_alias(name, "best", client.create_model_version(name, uri).version)
    return f"models:/{name}@best"


def pixels(uri: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(storage.read_bytes(uri))), np.int16)
