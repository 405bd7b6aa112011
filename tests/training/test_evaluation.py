"""Figures while a run trains: those of infd.evaluation for the checkpoint of that step; and training does not see them."""

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch
import two_judges
from evaluation.networks import random_network
from pictures import encoded, picture

from infd import checkpoint
from infd.config import (
    AutoencoderTrainingConfig,
    DiffusionTrainingConfig,
    IngestConfig,
    LatentConfig,
    LossConfig,
    ReconstructionConfig,
    SampleConfig,
    SamplesConfig,
)
from infd.config_form import flat
from infd.data.latents import Latents, open_latents
from infd.data.snapshot import open_dataset, write_dataset
from infd.errors import ConfigError
from infd.evaluation.evaluate import evaluate
from infd.evaluation.kid import KidConfig
from infd.evaluation.protocols import Pairs, fid
from infd.evaluation.rendered import drawn, reconstructions
from infd.evaluation.sources import DatasetSource
from infd.models.autoencoder import Autoencoder
from infd.presets import ldm_tiny, tiny
from infd.training import encode
from infd.training import evaluation as judging
from infd.training.autoencoder_run import run_autoencoder
from infd.training.diffusion_run import fitted, run_diffusion
from infd.training.loop import Metrics
from infd.training.run import open_run
from infd.training.world import World

LAYOUT = False
"""As a loaded checkpoint is laid out in memory: with channels last the same figures differ by rounding, some 1e-6."""
SIZES = (48, 80)
RECONSTRUCTED = ReconstructionConfig(every=2, photos=3, sizes=SIZES, metrics=("psnr", "ssim"))
DRAWN = SamplesConfig(every=2, images=5, side=64, steps=2)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> str:
    root = str(tmp_path_factory.mktemp("dataset"))
    made = write_dataset([(f"photo-{seed}.png", encoded(picture(300, 280, seed))) for seed in range(16)], root,
                         IngestConfig(val_fraction=0.4), group="a")
    assert int(made.manifest.split.sum()) >= 4
    return root


def stage_one(evaluation: ReconstructionConfig) -> AutoencoderTrainingConfig:
    base = tiny()
    loop = dataclasses.replace(base.loop, steps=6, batch=2, log_every=2, checkpoint_every=2, validate_every=2, keep_every=2,
                               validate_samples=4, preview_every=6, preview_photos=1, preview_px=256, channels_last=LAYOUT)
    return dataclasses.replace(base, loop=loop, crop=dataclasses.replace(base.crop, r_max=128), evaluation=evaluation,
                               loss=LossConfig(lpips=0, quantizer=1e-6, gan_from_step=3))


class Told:
    """Keeps the figures of evaluations."""

    def __init__(self) -> None:
        self.rows: dict[int, Metrics] = {}

    def log(self, step: int, metrics: Metrics) -> None:
        if found := {name: value for name, value in metrics.items() if name.startswith("eval/")}:
            self.rows[step] = found

    def picture(self, step: int, name: str, image: object) -> None: ...

    def checkpointed(self, step: int, uri: str, metrics: Metrics) -> None: ...

    def alarm(self, step: int, alarm: object) -> None: ...


def train(uri: Path, dataset: str, evaluation: ReconstructionConfig) -> Told:
    told = Told()
    run = open_run(str(uri), preset="tiny", config=stage_one(evaluation), dataset=dataset)
    run_autoencoder(run, world=World(), observer=told)
    return told


@pytest.mark.slow
def test_ref_figures_of_stage_one_are_those_of_its_checkpoints_and_choose_the_best(dataset, tmp_path):
    told = train(tmp_path / "run", dataset, RECONSTRUCTED)
    assert list(told.rows) == [2, 4, 6] and set(told.rows[2]) == {f"eval/{name}.{side}" for name in ("psnr", "ssim")
                                                                 for side in SIZES}
    truth = DatasetSource(open_dataset(dataset), split="val")
    truth.rows = truth.rows[:3]
    for step, found in told.rows.items():
        uri = checkpoint.step_uri(str(tmp_path / "run"), step)
        result = evaluate(Pairs(name="reconstruction", metrics=("psnr", "ssim"), sizes=SIZES), truth,
                          reconstructions(truth, uri, side=max(SIZES)))
        assert found == {f"eval/{one.name.replace('@', '.')}": one.value for one in result.metrics}
        assert found.items() <= checkpoint.load(uri).meta["metrics"].items()
    best = max(told.rows, key=lambda step: told.rows[step]["eval/psnr.48"])
    assert checkpoint.pointed(str(tmp_path / "run"), "best") == best


@pytest.mark.slow
def test_law_training_does_not_see_its_evaluations(dataset, tmp_path):
    train(tmp_path / "judged", dataset, RECONSTRUCTED)
    train(tmp_path / "unjudged", dataset, ReconstructionConfig())
    one, other = (checkpoint.load(str(tmp_path / name / "checkpoints" / "last")) for name in ("judged", "unjudged"))
    assert [one.files[name] for name in (checkpoint.MODEL, checkpoint.TRAIN_STATE)] == [
        other.files[name] for name in (checkpoint.MODEL, checkpoint.TRAIN_STATE)]


@pytest.mark.slow
def test_law_a_run_that_goes_on_keeps_its_best(dataset, tmp_path):
    """What was best before the cut is replaced by what is better alone."""
    train(tmp_path / "run", dataset, RECONSTRUCTED)
    best = checkpoint.pointed(str(tmp_path / "run"), "best")
    perfect = checkpoint.load(checkpoint.step_uri(str(tmp_path / "run"), 2))
    model, state = perfect.model(), perfect.train_state()
    for step in (2, 4, 6):
        shutil.rmtree(checkpoint.step_uri(str(tmp_path / "run"), step))
    checkpoint.save(perfect.uri, model=model, train_state=state,
                    meta=perfect.meta | {"metrics": perfect.meta["metrics"] | {"eval/psnr.48": 99.0}})
    for pointer in ("best", "last"):
        checkpoint.point(str(tmp_path / "run"), pointer, 2)
    assert list(train(tmp_path / "run", dataset, RECONSTRUCTED).rows) == [4, 6]
    assert best in (2, 4, 6) and checkpoint.pointed(str(tmp_path / "run"), "best") == 2


@pytest.mark.slow
def test_absent_weights_leave_out_what_needs_them(dataset, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("INFD_WEIGHTS", str(tmp_path / "none"))
    told = train(tmp_path / "run", dataset, dataclasses.replace(RECONSTRUCTED, metrics=("lpips_vgg", "ssim"), sizes=(48,)))
    assert set(told.rows[6]) == {"eval/ssim.48"} and "weights lpips-vgg: not at hand" in caplog.text
    best = max(told.rows, key=lambda step: told.rows[step]["eval/ssim.48"])
    assert checkpoint.pointed(str(tmp_path / "run"), "best") == best
    off = train(tmp_path / "off", dataset, dataclasses.replace(RECONSTRUCTED, metrics=("lpips_vgg",)))
    assert not off.rows and checkpoint.pointed(str(tmp_path / "off"), "best") in (2, 4, 6)


@pytest.mark.slow
def test_law_an_evaluation_that_fails_costs_no_step(dataset, tmp_path, monkeypatch, caplog):
    """Whatever it raises; the checkpoint was written before, and the last one is `best` where none was judged."""
    def broken(*_: object) -> None:
        whole = checkpoint.newest(str(tmp_path / "run"))
        assert whole is not None
        seen.append(whole.step)
        raise RuntimeError("no such kernel")

    seen: list[int] = []
    monkeypatch.setattr(judging, "pair_values", broken)
    told = train(tmp_path / "run", dataset, RECONSTRUCTED)
    assert not told.rows and seen == [2, 4, 6]
    assert "no evaluation: InfdError: rank 0: RuntimeError: no such kernel" in caplog.text
    assert checkpoint.pointed(str(tmp_path / "run"), "best") == 6


@pytest.mark.slow
def test_photos_that_are_too_small_are_no_end_of_a_run(dataset, tmp_path, caplog):
    told = train(tmp_path / "run", dataset, dataclasses.replace(RECONSTRUCTED, sizes=(1024,)))
    assert not told.rows and "no photo of its val split has a side of 1024 px" in caplog.text


def test_error_an_evaluation_beside_the_checkpoints():
    with pytest.raises(ConfigError, match="evaluation.every=3: must be a multiple of loop.checkpoint_every=2"):
        stage_one(dataclasses.replace(RECONSTRUCTED, every=3))
    with pytest.raises(ConfigError, match="evaluation.metrics=.*at least one"):
        ReconstructionConfig(metrics=())
    with pytest.raises(ConfigError, match="evaluation.images=1: must be at least 2"):
        SamplesConfig(images=1)


# ---------------------------------------------------------------- stage two


@pytest.fixture(scope="module")
def latents(dataset, tmp_path_factory) -> Latents:
    folder, config = tmp_path_factory.mktemp("latents"), tiny()
    torch.manual_seed(0)
    weights = {f"autoencoder.{name}": value for name, value in Autoencoder(config.model).state_dict().items()}
    checkpoint.save(str(folder / "autoencoder"), model=weights, train_state={}, meta={
        "stage": "autoencoder", "step": 1, "config": flat(config), "metrics": {}, "snapshot": "", "weights": {}})
    plain, out = LatentConfig(flip=True), str(folder / "out")
    pins = encode.begin(out, encode.pins_of(dataset, str(folder / "autoencoder"), plain, None))
    encoder = encode.Encoder.open(out, pins.snapshot, plain, device="cpu", conditions=None)
    for index in range(len(encoder.dataset.manifest.shards)):
        encoder.unit(index)
    encode.finish(out, pins)
    return open_latents(out)


def stage_two(evaluation: SamplesConfig) -> DiffusionTrainingConfig:
    base = ldm_tiny()
    loop = dataclasses.replace(base.loop, steps=4, batch=4, log_every=2, checkpoint_every=2, validate_every=2, keep_every=2,
                               validate_samples=4, preview_every=4, preview_photos=1, preview_px=256, channels_last=LAYOUT)
    return dataclasses.replace(base, loop=loop, evaluation=evaluation, preview_steps=2)


def train_two(uri: Path, latents: Latents, evaluation: SamplesConfig) -> Told:
    told, info = Told(), latents.info
    run = open_run(str(uri), preset="tiny", config=fitted(stage_two(evaluation), latents), dataset=info["snapshot"],
                   latents={"address": latents.uri, "sha256": latents.sha256})
    run_diffusion(run, world=World(), observer=told)
    return told


@pytest.mark.slow
def test_ref_figures_of_stage_two_are_those_of_its_checkpoints(dataset, latents, tmp_path, monkeypatch):
    network = random_network()
    monkeypatch.setattr(judging, "at_hand", lambda name, world: True)
    monkeypatch.setattr(judging, "open_network", lambda config, device: network)
    told = train_two(tmp_path / "run", latents, DRAWN)
    assert list(told.rows) == [2, 4] and set(told.rows[2]) == {"eval/kid_64.random", "eval/frechet_64.random"}
    truth = DatasetSource(open_dataset(dataset), split="val")
    truth.rows = truth.rows[:DRAWN.images]
    protocol = dataclasses.replace(fid(side=64), metrics=("kid", "frechet"),
                                   kid=KidConfig(subsets=1, subset_size=min(len(truth), DRAWN.images)))
    for step, found in told.rows.items():
        uri = checkpoint.step_uri(str(tmp_path / "run"), step)
        judged = drawn(uri, range(DRAWN.images), side=64, config=SampleConfig(steps=DRAWN.steps))
        result = evaluate(protocol, truth, judged, network=network)
        for one in result.metrics:
            assert found[f"eval/{one.name.replace('[', '.').rstrip(']')}"] == pytest.approx(one.value, rel=1e-6, abs=1e-9)
    best = min(told.rows, key=lambda step: told.rows[step]["eval/kid_64.random"])
    assert checkpoint.pointed(str(tmp_path / "run"), "best") == best


@pytest.mark.slow
def test_stage_two_without_weights_evaluates_nothing(latents, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("INFD_WEIGHTS", str(tmp_path / "none"))
    told = train_two(tmp_path / "run", latents, DRAWN)
    assert not told.rows and "weights inception-fid: not at hand" in caplog.text
    assert checkpoint.pointed(str(tmp_path / "run"), "best") in (2, 4)


# ---------------------------------------------------------------- many ranks


@pytest.mark.slow
def test_law_two_ranks_find_what_one_finds(dataset, tmp_path):
    config = stage_one(dataclasses.replace(RECONSTRUCTED, photos=3))
    (found, error), (other, same) = two_judges.two_ranks(tmp_path, config, dataset)
    assert found == other == two_judges.evaluated(World(), config, dataset)
    assert error == same == "rank 1: RuntimeError: a photo is gone"


def test_law_a_rank_without_a_seed_adds_no_features(dataset):
    source = DatasetSource(open_dataset(dataset), split="val")
    samples = judging.Samples(source, [0, 1], random_network(), SamplesConfig(images=2, side=64), world=World(rank=2, size=3),
                              model=lambda: pytest.fail("asked for"), latents=lambda model, seeds: pytest.fail("drawn"))
    assert samples._drawn().shape == (0, samples.network.dim)
