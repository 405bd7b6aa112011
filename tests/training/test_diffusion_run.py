"""Stage two from photographs to samples, without Ray: latents, a run that is cut and goes on, a model that generates."""

import dataclasses
import io
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from infd import checkpoint, storage
from infd.config import DiffusionTrainingConfig, IngestConfig, LatentConfig
from infd.config_form import flat
from infd.data.conditions import Conditions
from infd.data.latents import LatentBatch, LatentLoader, Latents, latent_crop, open_latents, unit_done, unit_uri
from infd.data.loader import Loader
from infd.data.order import Order
from infd.data.snapshot import open_dataset, write_dataset
from infd.errors import CheckpointError, ConfigError, DatasetError, InfdError
from infd.generation.model import Model, load_model
from infd.models.autoencoder import Autoencoder
from infd.presets import ldm_tiny, tiny
from infd.training import encode, posthoc
from infd.training.diffusion_run import fitted, run_diffusion
from infd.training.latent_diffusion import DiffusionStage
from infd.training.loop import Metrics
from infd.training.run import Run, open_run
from infd.training.world import World

STEPS = 6
PLAIN = LatentConfig()


def photo(seed: int) -> bytes:
    coarse = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8))
    buffer = io.BytesIO()
    coarse.resize((300 + 7 * seed, 280), Image.Resampling.BICUBIC).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> str:
    """Ten photographs in several shards."""
    root = str(tmp_path_factory.mktemp("dataset"))
    made = write_dataset([(f"photo-{seed}.png", photo(seed)) for seed in range(10)], root,
                         IngestConfig(val_fraction=0.3, shard_bytes=70_000), group="a")
    assert 0 < int(made.manifest.split.sum()) < len(made) and len(made.manifest.shards) > 2
    return root


def autoencoder(folder: Path, seed: int = 0) -> str:
    """A checkpoint of an untrained `tiny`."""
    torch.manual_seed(seed)
    config = tiny()
    weights = {f"autoencoder.{name}": value for name, value in Autoencoder(config.model).state_dict().items()}
    uri = str(folder / f"autoencoder-{seed}")
    checkpoint.save(uri, model=weights, train_state={}, meta={
        "stage": "autoencoder", "step": 1, "config": flat(config), "metrics": {}, "snapshot": "", "weights": {}})
    return uri


def encoded(dataset: str, out: str, checkpoint_uri: str, config: LatentConfig = PLAIN, table: str = "") -> Latents:
    """All units, one after the other."""
    conditions = Conditions(table) if table else None
    pins = encode.begin(out, encode.pins_of(dataset, checkpoint_uri, config, conditions.sha256 if conditions else None))
    encoder = encode.Encoder.open(out, pins.snapshot, config, device="cpu", conditions=conditions)
    for index in range(len(encoder.dataset.manifest.shards)):
        encoder.unit(index)
    encode.finish(out, pins)
    return open_latents(out)


@pytest.fixture(scope="module")
def latents(dataset, tmp_path_factory) -> Latents:
    folder = tmp_path_factory.mktemp("latents")
    return encoded(dataset, str(folder / "out"), autoencoder(folder))


# ---------------------------------------------------------------- latents


def test_law_latents_are_what_the_encoder_says_online(dataset, latents):
    """Plain and mirrored, every sample of two epochs, in the order of the photographs."""
    epoch_steps = latent_order(latents).epoch_steps
    for online, cached in both(dataset, latents, 2 * epoch_steps):
        assert torch.equal(online.g, cached.g)
        torch.testing.assert_close(cached.moments, online.moments, rtol=1e-5, atol=1e-5)
    flips = sum(sample.flip for step in range(2 * epoch_steps) for sample in latent_order(latents).batch(step))
    assert 0 < flips < 8 * epoch_steps


def test_law_training_from_latents_is_training_that_encodes_online(dataset, latents):
    """To rounding: the loss of each step to 1e-5, and the weights to a part of what they moved."""
    config = fitted(ldm_tiny(), latents)
    from_photos, from_latents = (DiffusionStage(config, world=World()) for _ in range(2))
    begun = {name: value.clone() for name, value in from_photos.denoiser.state_dict().items()}
    for online, cached in both(dataset, latents, 4):
        wanted, found = (stage.step(batch, batch.step + 1) for stage, batch in ((from_photos, online), (from_latents, cached)))
        torch.testing.assert_close(found["train/loss"], wanted["train/loss"], rtol=1e-5, atol=0)
    ends = from_photos.denoiser.state_dict()
    moved = max(float((ends[name] - value).abs().max()) for name, value in begun.items())
    assert moved > 1e-4
    for name, value in from_latents.denoiser.state_dict().items():
        torch.testing.assert_close(value, ends[name], rtol=0, atol=0.01 * moved)


def latent_order(latents: Latents) -> Order:
    return Order(latents.manifest, latent_crop(flip=True), batch=4, seed=3)


def both(dataset: str, latents: Latents, steps: int) -> Iterator[tuple[LatentBatch, LatentBatch]]:
    """The batches of the first steps: encoded from the photographs now, and read from the latents."""
    crop = dataclasses.replace(latent_crop(flip=True, lowres_px=64), patch_px=16)
    order = Order(open_dataset(dataset).manifest, crop, batch=4, seed=3)
    encoder = encode.Encoder.open(latents.uri, dataset, LatentConfig(), device="cpu")
    with (Loader(open_dataset(dataset), order, DiffusionTrainingConfig(loop=ldm_tiny().loop).loader, slots=range(4)) as photos,
          LatentLoader(latents, latent_order(latents), ldm_tiny().loader, slots=range(4)) as read):
        for _ in range(steps):
            there, here = next(photos), next(read)
            assert there.rows == list(here.rows)
            yield LatentBatch(here.step, there.g, encode.moments(encoder.autoencoder, there.lowres)), here


def test_law_a_killed_unit_is_encoded_again_to_the_same_bytes(dataset, latents, tmp_path):
    again = str(tmp_path / "again")
    pins = encode.begin(again, encode.pins_of(dataset, storage.join(latents.uri, "autoencoder"), LatentConfig()))
    encoder = encode.Encoder.open(again, dataset, LatentConfig(), device="cpu")
    shards = encoder.dataset.manifest.shards
    encoder.unit(1)
    with pytest.raises(DatasetError, match=f"{len(shards) - 1} of {len(shards)} shards are not encoded yet"):
        encode.finish(again, pins)
    with pytest.raises(DatasetError, match="not all there; run the same jobs/encode_latents.py again"):
        open_latents(again)
    storage.delete(unit_uri(again, shards[1]))                     # killed between the shard and its record
    for index in range(len(shards)):
        encoder.unit(index)
        assert (unit_done(again, shards[index]) or {})["sha256"] == latents.manifest.shards[index].sha256


def test_law_float16_rounds_as_the_manifest_says(dataset, latents, tmp_path):
    half = encoded(dataset, str(tmp_path / "half"), storage.join(latents.uri, "autoencoder"), LatentConfig(dtype="float16"))
    most = max(float(np.abs(half.take(name, row).astype(np.float64) - latents.take(name, row)).max())
               for name in ("z", "z_flip") for row in range(len(half)))
    assert half.info["rounding"]["most"] == pytest.approx(most, rel=1e-6) and 0 < half.info["rounding"]["relative"] < 1e-3
    assert latents.info["rounding"]["most"] == 0
    assert sum(s.bytes for s in half.manifest.shards) < 0.7 * sum(s.bytes for s in latents.manifest.shards)


def test_law_the_scale_is_the_spread_of_what_training_sees(latents):
    """Of the samples of the Gaussians: drawn, they have the standard deviation that the manifest tells."""
    generator, drawn = np.random.default_rng(0), []
    for row in range(len(latents)):
        mean, log_var = np.split(latents.take("z", row).astype(np.float64), 2)
        drawn.append(mean + np.exp(0.5 * log_var.clip(-30, 20)) * generator.standard_normal(mean.shape))
    assert latents.info["scale"] == pytest.approx(np.std(drawn), rel=0.02)


def test_error_two_autoencoders_or_settings_are_never_mixed(dataset, latents, tmp_path):
    other = encode.pins_of(dataset, autoencoder(tmp_path, seed=1), LatentConfig())
    with pytest.raises(DatasetError, match=f"{latents.info['checkpoint_sha256']}, not {other.checkpoint_sha256}"):
        encode.begin(latents.uri, other)
    with pytest.raises(DatasetError, match="they are of the settings"):
        encode.begin(latents.uri, encode.pins_of(dataset, latents.info["checkpoint"], LatentConfig(dtype="float16")))


def test_error_two_snapshots_are_never_mixed(dataset, latents, tmp_path):
    """Neither of two addresses nor of one where a dataset was removed and made anew."""
    anew = str(tmp_path / "dataset")
    write_dataset([("photo-0.png", photo(0))], anew, IngestConfig(val_fraction=0))
    other = encode.pins_of(anew, latents.info["checkpoint"], LatentConfig())
    with pytest.raises(DatasetError, match=f"of the snapshot {dataset}@1, not {anew}@1"):
        encode.begin(latents.uri, other)
    mine = encode.pins_of(dataset, latents.info["checkpoint"], LatentConfig())
    with pytest.raises(DatasetError, match=f"sha256 {mine.snapshot_sha256}, not {other.snapshot_sha256}"):
        encode.begin(latents.uri, dataclasses.replace(mine, snapshot_sha256=other.snapshot_sha256))
    assert latents.are_of(open_dataset(dataset)) and not latents.are_of(open_dataset(anew))


def test_law_latents_go_on_with_the_autoencoder_that_lies_beside_them(dataset, latents, tmp_path):
    """Where the run that they came from has gone, or its best has moved on."""
    beside = storage.join(latents.uri, "autoencoder")
    assert encode.begin(latents.uri, encode.pins_of(dataset, beside, LatentConfig())).checkpoint == latents.info["checkpoint"]
    again = encoded(dataset, str(tmp_path / "again"), beside)
    assert [entry.sha256 for entry in again.manifest.shards] == [entry.sha256 for entry in latents.manifest.shards]
    assert again.info["checkpoint_sha256"] == latents.info["checkpoint_sha256"]


def test_captions_and_embeddings_travel_with_the_latents(dataset, latents, tmp_path):
    photos = open_dataset(dataset)
    rows = [{"image_id": photos[row]["image_id"], "caption": f"photo {row}", "embedding": np.full((3, 5), row).tolist()}
            for row in reversed(range(len(photos)))]
    table = str(tmp_path / "captions.parquet")
    pq.write_table(pa.Table.from_pylist(rows), table, row_group_size=3)
    made = encoded(dataset, str(tmp_path / "out"), storage.join(latents.uri, "autoencoder"), table=table)
    assert made.context == (3, 5) and made[7]["caption"] == "photo 7"
    with LatentLoader(made, Order(made.manifest, latent_crop(flip=False), batch=4, seed=0), ldm_tiny().loader,
                      slots=range(4)) as read:
        batch = next(read)
    assert batch.context is not None and batch.context[:, 1, 2].tolist() == list(batch.rows)
    pq.write_table(pa.Table.from_pylist([*rows, rows[3]]), table)
    with pytest.raises(ConfigError, match=f"image_id={rows[3]['image_id']} is there twice"):
        Conditions(table)
    pq.write_table(pa.Table.from_pylist(rows[1:]), table)
    with pytest.raises(ConfigError, match=f"no row for image_id={rows[0]['image_id']}"):
        encoded(dataset, str(tmp_path / "other"), storage.join(latents.uri, "autoencoder"), table=table)


# ---------------------------------------------------------------- runs


class Recorder:
    """Keeps what it is told; raises Cut at a step."""

    def __init__(self, cut_at: int | None = None) -> None:
        self.cut_at, self.rows, self.pictures = cut_at, dict[int, Metrics](), list[Image.Image]()

    def log(self, step: int, metrics: Metrics) -> None:
        self.rows[step] = self.rows.get(step, {}) | metrics
        if self.cut_at is not None and step >= self.cut_at:
            raise Cut

    def picture(self, step: int, name: str, image: Image.Image) -> None:
        self.pictures.append(image)

    def checkpointed(self, step: int, uri: str, metrics: Metrics) -> None: ...

    def alarm(self, step: int, alarm: object) -> None: ...


class Cut(Exception):
    """In the place of kill -9."""


def config(**changes: object) -> DiffusionTrainingConfig:
    base = ldm_tiny()
    loop = dataclasses.replace(base.loop, steps=STEPS, batch=4, log_every=1, checkpoint_every=2, validate_every=4, keep_every=6,
                               validate_samples=4, preview_every=6, preview_photos=2, preview_px=300)
    model = dataclasses.replace(base.model, widths=(16, 32), head_dim=16)
    return dataclasses.replace(base, loop=loop, model=model, preview_steps=3, **changes)  # pyright: ignore


def begin(uri: Path, latents: Latents, **changes: object) -> Run[DiffusionTrainingConfig]:
    return open_run(str(uri), preset="tiny", config=fitted(config(**changes), latents), dataset=latents.info["snapshot"],
                    latents={"address": latents.uri, "sha256": latents.sha256})


@pytest.fixture(scope="module")
def trained(latents, tmp_path_factory) -> tuple[Run[DiffusionTrainingConfig], Recorder]:
    run, seen = begin(tmp_path_factory.mktemp("runs") / "whole", latents), Recorder()
    run_diffusion(run, world=World(), observer=seen)
    return run, seen


@pytest.mark.slow
@pytest.mark.parametrize("cut", [1, 3, 5])
def test_law_a_run_that_is_cut_ends_with_the_same_weights(trained, latents, tmp_path, cut):
    parted = begin(tmp_path / "run", latents)
    with pytest.raises(Cut):
        run_diffusion(parted, world=World(), observer=Recorder(cut_at=cut))
    run_diffusion(begin(tmp_path / "run", latents), world=World(), observer=Recorder())
    one, other = (checkpoint.load(f"{run.uri}/checkpoints/last") for run in (trained[0], parted))
    assert one.step == other.step == STEPS
    for there, here in ((one.model(), other.model()), (one.train_state(), other.train_state())):
        assert there.keys() == here.keys()
        for name, value in there.items():
            assert torch.equal(value, here[name]), name


def test_a_run_validates_shows_samples_and_keeps_a_model_that_generates(trained, latents):
    run, seen = trained
    assert seen.rows[4]["val/loss"] > 0 and seen.pictures[0].width > 2 * 256
    model = load_model(f"{run.uri}/checkpoints/best")
    assert model.diffusion.scale == latents.info["scale"] and model.side == 32 and model.autoencoder.patch_px == 48
    field = model.sample(seed=7, steps=4)
    assert field.render(33, 50).shape == (1, 3, 33, 50)
    meta = checkpoint.load(model.uri).meta
    assert meta["autoencoder"]["sha256"] == latents.info["checkpoint_sha256"] and meta["stage"] == "latent_diffusion"


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpm", "unipc"])
def test_law_an_image_is_its_seeds_whatever_is_sampled_beside_it(trained, sampler):
    model = load_model(f"{trained[0].uri}/checkpoints/last")
    together = model.latents([5, 6, 7], steps=5, sampler=sampler)
    alone = model.latents([6], steps=5, sampler=sampler)
    torch.testing.assert_close(together[1:2], alone, rtol=1e-4, atol=1e-4)
    assert float((together[0] - together[1]).abs().max()) > 0.1


def test_error_latents_that_were_made_again_are_refused(trained, latents, dataset, tmp_path):
    other = encoded(dataset, str(tmp_path / "other"), autoencoder(tmp_path, seed=2))
    with pytest.raises(CheckpointError, match=f"{latents.sha256}.*not.*{other.sha256}"):
        open_run(trained[0].uri, preset="tiny", config=fitted(config(), latents), dataset=latents.info["snapshot"],
                 latents={"address": latents.uri, "sha256": other.sha256})
    run = begin(tmp_path / "run", other)
    encoded(dataset, str(tmp_path / "third"), autoencoder(tmp_path, seed=3))
    (tmp_path / "other" / "latents.parquet").write_bytes((tmp_path / "third" / "latents.parquet").read_bytes())
    with pytest.raises(CheckpointError, match=f"sha256 {open_latents(other.uri).sha256}; run .* began with {other.sha256}"):
        run_diffusion(run, world=World(), observer=Recorder())


@pytest.mark.parametrize(("changes", "message"), [
    ({"model": {"z_dim": 3}}, "model.z_dim=3: the latents .* have 4 channels"),
    ({"model": {"condition": "class", "classes": 7}}, r"model.classes=7: the dataset has 1 groups \(a\)"),
    ({"model": {"condition": "text", "context_dim": 8}}, "hold no embedded captions"),
    ({"model": {"widths": (16,) * 7}}, "halve z 6 times; the latents have a side of 32"),
])
def test_error_a_model_that_does_not_fit_the_latents(latents, changes, message):
    base = config()
    with pytest.raises(InfdError, match=message):
        fitted(dataclasses.replace(base, model=dataclasses.replace(base.model, **changes["model"])), latents)


def test_error_photographs_of_no_class(latents, tmp_path):
    nameless = str(tmp_path / "dataset")
    write_dataset([("photo-0.png", photo(0))], nameless, IngestConfig(val_fraction=0))
    made = encoded(nameless, str(tmp_path / "latents"), latents.info["checkpoint"])
    wished = dataclasses.replace(config(), model=dataclasses.replace(config().model, condition="class", classes=1))
    with pytest.raises(ConfigError, match=f"some photos of {nameless}@1 have no group"):
        fitted(wished, made)


def test_error_a_loss_that_is_not_finite_names_the_photographs(latents, tmp_path):
    run = begin(tmp_path / "run", latents)
    broken = dataclasses.replace(run, config=dataclasses.replace(
        run.config, optimizer=dataclasses.replace(run.config.optimizer, lr=1e30, warmup_steps=0, clip_norm=0)))
    with pytest.raises(InfdError, match=r"a loss or a weight is not finite; the batch was saved as .*step-0000000"):
        run_diffusion(broken, world=World(), observer=Recorder())
    kept = next((tmp_path / "run" / "failures").iterdir())
    with np.load(kept) as content:
        assert content["moments"].shape == (4, 8, 32, 32) and len(content["image_ids"]) == 4


@pytest.mark.slow
def test_law_a_run_with_posthoc_averages_is_cut_and_makes_one_of_any_length(latents, tmp_path):
    """Its snapshots are those of an undisturbed run, and a checkpoint of another length generates."""
    changes = {"optimizer": dataclasses.replace(config().optimizer, posthoc=True)}
    whole, parted = begin(tmp_path / "whole", latents, **changes), begin(tmp_path / "parted", latents, **changes)
    run_diffusion(whole, world=World(), observer=Recorder())
    with pytest.raises(Cut):
        run_diffusion(parted, world=World(), observer=Recorder(cut_at=3))
    run_diffusion(parted, world=World(), observer=Recorder())
    assert posthoc.snapshots(whole.uri) == posthoc.snapshots(parted.uri) == [2, 4, 6]
    one, other = (posthoc.averaged(run.uri, sigma=0.2, step=6) for run in (whole, parted))
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    model = load_model(posthoc.write_averaged(whole.uri, str(tmp_path / "out"), sigma=0.2))
    assert torch.equal(model.denoiser.state_dict()["net.conv_in.weight"], one["net.conv_in.weight"])
    assert checkpoint.load(model.uri).meta["metrics"] == {} and checkpoint.newest(whole.uri).meta["metrics"]  # pyright: ignore
    with pytest.raises(CheckpointError, match="a checkpoint is there already"):
        posthoc.write_averaged(whole.uri, str(tmp_path / "out"), sigma=0.1)


def test_run_json_names_stage_and_latents(trained, latents):
    record = json.loads(Path(trained[0].uri, "run.json").read_text())
    assert record["stage"] == "latent_diffusion" and record["latents"]["sha256"] == latents.sha256
    assert isinstance(load_model(f"{trained[0].uri}/checkpoints/last"), Model)
