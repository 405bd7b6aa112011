"""A run without Ray: it begins, is cut anywhere, goes on, and ends with the weights of an undisturbed one."""

import dataclasses
import io
import json
import math
import os
import signal
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from infd import checkpoint
from infd.config import AutoencoderTrainingConfig, IngestConfig, LossConfig
from infd.config_form import departures, flat
from infd.data.snapshot import commit, manifest_bytes, open_dataset, read_table, write_dataset
from infd.errors import CheckpointError, ConfigError, Interrupted, TrainingError, WeightsError
from infd.generation.load import load_autoencoder
from infd.presets import tiny
from infd.training import interruption
from infd.training.alarms import Alarm
from infd.training.autoencoder_run import required_weights, run_autoencoder
from infd.training.loop import Metrics
from infd.training.run import Run, RunHooks, check_batch, default_run, open_run
from infd.training.world import World

STEPS = 12


def photo(seed: int, width: int, height: int) -> bytes:
    generator = np.random.default_rng(seed)
    coarse = Image.fromarray(generator.integers(0, 256, (6, 6, 3), dtype=np.uint8))
    buffer = io.BytesIO()
    coarse.resize((width, height), Image.Resampling.BICUBIC).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> str:
    root = str(tmp_path_factory.mktemp("dataset"))
    sources = [(f"photo-{seed}.png", photo(seed, 300 + 7 * seed, 280)) for seed in range(10)]
    made = write_dataset(sources, root, IngestConfig(val_fraction=0.3))
    assert 0 < int(made.manifest.split.sum()) < len(made)
    return root


def config(**changes: object) -> AutoencoderTrainingConfig:
    base = tiny()
    loop = dataclasses.replace(base.loop, steps=STEPS, log_every=2, checkpoint_every=3, validate_every=6, keep_every=6,
                               validate_samples=4, preview_every=12, preview_photos=1, preview_px=256)
    crop = dataclasses.replace(base.crop, r_max=256)
    loss = LossConfig(lpips=0, quantizer=1e-6, gan=0.1, gan_from_step=4)
    return dataclasses.replace(base, loop=loop, crop=crop, loss=loss, **changes)  # pyright: ignore


class Recorder:
    """Keeps what it is told; raises Cut at a step."""

    def __init__(self, cut_at: int | None = None) -> None:
        self.cut_at = cut_at
        self.rows: dict[int, Metrics] = {}
        self.pictures: list[Image.Image] = []
        self.alarms: list[Alarm] = []

    def log(self, step: int, metrics: Metrics) -> None:
        self.rows[step] = self.rows.get(step, {}) | metrics
        if self.cut_at is not None and step >= self.cut_at:
            raise Cut

    def picture(self, step: int, name: str, image: Image.Image) -> None:
        self.pictures.append(image)

    def checkpointed(self, step: int, uri: str, metrics: Metrics) -> None:
        pass

    def alarm(self, step: int, alarm: Alarm) -> None:
        self.alarms.append(alarm)


class Cut(Exception):
    pass


def begin(uri: str, dataset: str, **changes: object):
    return open_run(uri, preset="tiny", config=config(**changes), dataset=dataset)


@pytest.fixture(scope="module")
def whole(dataset, tmp_path_factory) -> tuple[Run[AutoencoderTrainingConfig], Recorder]:
    """A run that nothing disturbed, and what it told."""
    observer, run = Recorder(), begin(str(tmp_path_factory.mktemp("whole") / "run"), dataset)
    run_autoencoder(run, world=World(), observer=observer)
    return run, observer


@pytest.mark.slow
@pytest.mark.parametrize("cut", [2, 4, 8, 10])
def test_law_a_run_cut_and_resumed_ends_with_the_same_weights(dataset, whole, tmp_path, cut):
    parted = begin(str(tmp_path / "parted"), dataset)
    with pytest.raises(Cut):
        run_autoencoder(parted, world=World(), observer=Recorder(cut_at=cut))
    run_autoencoder(begin(parted.uri, dataset), world=World(), observer=Recorder())
    ends = [checkpoint.load(f"{run.uri}/checkpoints/last") for run in (whole[0], parted)]
    assert [end.step for end in ends] == [STEPS, STEPS]
    assert ends[0].files[checkpoint.MODEL] == ends[1].files[checkpoint.MODEL]
    assert ends[0].files[checkpoint.TRAIN_STATE] == ends[1].files[checkpoint.TRAIN_STATE]


@pytest.mark.slow
def test_a_run_leaves_checkpoints_previews_and_metrics(whole):
    run, observer = whole
    assert set(checkpoint.steps(run.uri)) >= {6, 12} and 9 in checkpoint.steps(run.uri) and 3 not in checkpoint.steps(run.uri)
    assert {"train/loss", "train/l1", "train/psnr", "train/gan_weight", "train/logits_real", "speed/images_per_s",
            "speed/data_wait_fraction", "val/loss"} <= set(observer.rows[12])
    (page,) = observer.pictures                                    # input, photograph, render, zoom and deep zoom of both
    assert Path(run.uri, "previews", "step-00000012.png").exists() and (page.width - 8) // (256 + 8) == 7
    best = checkpoint.load(f"{run.uri}/checkpoints/best")
    assert best.meta["metrics"]["val/loss"] == min(observer.rows[step]["val/loss"] for step in (6, 12))
    model = load_autoencoder(f"{run.uri}/checkpoints/best")
    assert not model.training
    image = model.field(model.encode(torch.zeros(1, 3, 64, 64))).render(96, 80)
    assert image.shape == (1, 3, 96, 80) and bool(image.isfinite().all())


@pytest.mark.slow
def test_law_a_run_that_is_made_longer_keeps_its_best(dataset, tmp_path):
    """Step 8 was judged as the last one; of 12 steps it would not have been."""
    def of(steps: int) -> Run[AutoencoderTrainingConfig]:
        base = config()
        longer = dataclasses.replace(base, loop=dataclasses.replace(base.loop, steps=steps))
        return open_run(str(tmp_path / "run"), preset="tiny", config=longer, dataset=dataset)

    run_autoencoder(of(8), world=World(), observer=Recorder())
    checkpoint.point(str(tmp_path / "run"), "best", 8)
    hooks = RunHooks(of(12), SimpleNamespace(evaluation=None), World(), Recorder())  # pyright: ignore
    assert hooks.best == checkpoint.load(f"{tmp_path}/run/checkpoints/best").meta["metrics"]["val/loss"]


@pytest.mark.slow
def test_law_best_is_chosen_anew_where_checkpoints_are_judged_otherwise(dataset, whole, caplog):
    """Fewer crops give another figure of the same weights."""
    run = whole[0]

    def best(samples: int) -> float:
        fewer = dataclasses.replace(run, config=dataclasses.replace(
            run.config, loop=dataclasses.replace(run.config.loop, validate_samples=samples)))
        return RunHooks(fewer, SimpleNamespace(evaluation=None), World(), Recorder()).best  # pyright: ignore

    samples = run.config.loop.validate_samples
    assert best(samples) < math.inf and not caplog.records
    assert best(samples - 1) == math.inf
    assert f"loop.validate_samples {samples} -> {samples - 1}: step" in caplog.text


def test_a_run_keeps_its_snapshot_when_the_dataset_grows(dataset, tmp_path, caplog):
    run = begin(str(tmp_path / "run"), dataset)
    assert run.snapshot == f"{dataset}@1"
    first = open_dataset(dataset)
    grown = read_table(first.uri, 1).to_pylist()
    commit(first.uri, 2, manifest_bytes(grown[:1], {"parent": 1}))
    try:
        assert open_dataset(dataset).number == 2
        with caplog.at_level("WARNING"):
            assert begin(run.uri, dataset).snapshot == f"{dataset}@1"
        assert "goes on with" in caplog.text and "@2 by now" in caplog.text
        assert begin(run.uri, f"{dataset}@1").snapshot == run.snapshot
    finally:
        Path(first.uri, "snapshots", "00000002.parquet").unlink()
        Path(first.uri, "latest").write_text("1")


def test_error_another_config_may_not_go_on(dataset, tmp_path):
    run = begin(str(tmp_path / "run"), dataset)
    other = dataclasses.replace(config(), optimizer=dataclasses.replace(config().optimizer, lr=0.5))
    with pytest.raises(CheckpointError, match="optimizer.lr was 0.002 and is 0.5"):
        open_run(run.uri, preset="tiny", config=other, dataset=dataset)
    longer = dataclasses.replace(config(), loop=dataclasses.replace(config().loop, steps=99))
    assert open_run(run.uri, preset="tiny", config=longer, dataset=dataset).config.loop.steps == 99
    with pytest.raises(CheckpointError, match=r"it reads .*@1, not .*elsewhere"):
        open_run(run.uri, preset="tiny", config=config(), dataset="elsewhere")


def test_error_a_loss_that_is_not_finite_stops_and_keeps_the_batch(dataset, tmp_path):
    run = begin(str(tmp_path / "run"), dataset, optimizer=dataclasses.replace(tiny().optimizer, lr=1e30, warmup_steps=0))
    with pytest.raises(TrainingError, match=r"step \d+: a loss or a weight is not finite; the batch was saved as .*photo-\d"):
        run_autoencoder(run, world=World(), observer=Recorder())
    (saved,) = Path(run.uri, "failures").iterdir()
    content = np.load(saved)
    assert content["patch"].shape == (4, 3, 48, 48) and len(content["uris"]) == 4
    found = checkpoint.newest(run.uri)
    assert found is None or all(bool(value.isfinite().all()) for value in found.model().values())


def test_error_batch_and_weights_are_checked_first(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="loop.batch=4: must be divisible by the number of workers, 3"):
        check_batch(config().loop, 3)
    monkeypatch.setenv("INFD_WEIGHTS", str(tmp_path))
    with pytest.raises(WeightsError, match=r"jobs/weights.py get lpips-alex"):
        required_weights(tiny())


@pytest.mark.slow
def test_law_a_run_asked_to_stop_saves_and_goes_on_bit_for_bit(dataset, whole, tmp_path):
    """At step 5, where no checkpoint is due."""
    parted = begin(str(tmp_path / "parted"), dataset)
    asked: list[int] = []

    def wished() -> bool:
        asked.append(1)
        return len(asked) == 5

    with pytest.raises(Interrupted, match="step 5: asked to stop; the checkpoint is saved"):
        run_autoencoder(parted, world=World(), observer=Recorder(), wished=wished)
    newest = checkpoint.newest(parted.uri)
    assert newest is not None and newest.step == 5 and newest.meta["metrics"]["train/loss"] > 0
    run_autoencoder(begin(parted.uri, dataset), world=World(), observer=Recorder())
    ends = [checkpoint.load(f"{run.uri}/checkpoints/last") for run in (whole[0], parted)]
    assert ends[0].files[checkpoint.MODEL] == ends[1].files[checkpoint.MODEL]
    assert ends[0].files[checkpoint.TRAIN_STATE] == ends[1].files[checkpoint.TRAIN_STATE]


def test_sigterm_is_a_wish_once_and_inside_the_block_alone():
    heard: list[int] = []
    original = signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    try:
        with interruption.listening():
            os.kill(os.getpid(), signal.SIGTERM)
            assert interruption.wished() and not heard
            os.kill(os.getpid(), signal.SIGTERM)                   # launchers send several, while it saves
            assert interruption.wished() and not heard
        assert not interruption.wished()
        os.kill(os.getpid(), signal.SIGTERM)
        assert heard == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, original)


@pytest.mark.slow
def test_a_run_starts_from_the_weights_of_another(dataset, whole, tmp_path):
    first = whole[0]
    address = f"{first.uri}/checkpoints/best"
    frozen = dataclasses.replace(config(), freeze=("encoder",))
    second = open_run(str(tmp_path / "second"), preset="tiny", config=frozen, dataset=dataset, start_from=address)
    run_autoencoder(second, world=World(), observer=Recorder())
    found, before = checkpoint.load(f"{second.uri}/checkpoints/last"), checkpoint.load(address)
    for name, value in found.model("autoencoder.encoder.").items():
        assert torch.equal(value, before.model("autoencoder.encoder.")[name])
    assert found.meta["origin"] == {"checkpoint": before.uri, "start_step": before.step, "start_snapshot": first.snapshot,
                                    "start_sha256": before.files[checkpoint.MODEL]["sha256"]}
    plain = begin(str(tmp_path / "plain"), dataset)
    with pytest.raises(CheckpointError, match="it started from random weights, not from .*run/checkpoints/best"):
        open_run(plain.uri, preset="tiny", config=config(), dataset=dataset, start_from=address)


def test_error_starting_from_another_model_or_from_nothing(dataset, tmp_path):
    frozen = dataclasses.replace(config(), freeze=("encoder",))
    with pytest.raises(ConfigError, match="freeze=encoder: they would keep random weights; give --start-from"):
        open_run(str(tmp_path / "frozen"), preset="tiny", config=frozen, dataset=dataset)
    other = flat(dataclasses.replace(config(), model=dataclasses.replace(config().model, z_dim=3)))
    checkpoint.save(str(tmp_path / "other"), model={}, train_state={}, meta={"step": 0, "config": other})
    with pytest.raises(CheckpointError, match="its model is another .model.z_dim is 3 there and 4 here"):
        open_run(str(tmp_path / "run"), preset="tiny", config=config(), dataset=dataset, start_from=str(tmp_path / "other"))


def test_default_run_tells_configs_apart_and_not_their_rhythm(dataset):
    one = default_run(f"{dataset}@3", "tiny", config())
    assert one.startswith(f"{dataset}/training/tiny-")
    longer = dataclasses.replace(config(), loop=dataclasses.replace(config().loop, steps=99))
    assert default_run(dataset, "tiny", longer) == one
    seeded = dataclasses.replace(config(), loop=dataclasses.replace(config().loop, seed=1))
    assert default_run(dataset, "tiny", seeded) != one != default_run(dataset, "tiny", config(), start_from="elsewhere")
    told = departures(config())
    assert told["loop.batch"] == 4 and told["model.widths"] == [16, 16] and "optimizer.clip_norm" not in told


def test_run_json_is_plain(dataset, tmp_path):
    run = begin(str(tmp_path / "run"), dataset)
    content = json.loads(Path(run.uri, "run.json").read_text())
    assert content["snapshot"] == run.snapshot and content["config"]["loop.batch"] == 4
