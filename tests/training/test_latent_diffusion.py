"""The stage-two update: its loss on golden tensors, exact resume, micro-batches, conditions, and noise by sample."""

import dataclasses
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from refs import golden
from torch import Tensor

from infd.config import DenoiserConfig, DiffusionConfig, DiffusionTrainingConfig, LoopConfig, OptimizerConfig
from infd.errors import ConfigError
from infd.importers import denoiser as importer
from infd.importers import official
from infd.models.denoiser import Denoiser
from infd.training.latent_diffusion import DiffusionStage, LatentBatch
from infd.training.world import World

ROOT = Path(__file__).resolve().parents[2]
CONDITIONS = ("none", "class", "text")
MODEL = DenoiserConfig(widths=(8, 16), blocks=1, head_dim=8, norm_groups=4, z_dim=2)


def config(**changes: object) -> DiffusionTrainingConfig:
    base = DiffusionTrainingConfig(
        model=MODEL, optimizer=OptimizerConfig(lr=1e-3, betas=(0.9, 0.999), weight_decay=0.01, ema_decay=0.9),
        loop=LoopConfig(steps=9, batch=4))
    return dataclasses.replace(base, **changes)  # pyright: ignore


def batch(step: int, *, channels: int = 2, **conditions: Tensor) -> LatentBatch:
    generator = torch.Generator().manual_seed(step)
    return LatentBatch(step, torch.arange(4) + 4 * step, torch.randn(4, channels, 8, 8, generator=generator), **conditions)


def trained(stage: DiffusionStage, first: int, last: int) -> None:
    for step in range(first, last + 1):
        stage.step(batch(step), step)


TWO_RANKS = """
import sys
sys.path[:0] = ["tests", "tests/training"]
import torch
from test_latent_diffusion import CONDITIONS, conditioned, share
from infd.training.latent_diffusion import DiffusionStage
from infd.training.world import join
torch.set_num_threads(1)
world = join("cpu")
ends = {}
for condition in CONDITIONS:
    for cut in (0, 2):
        stage = DiffusionStage(conditioned(condition), world=world)
        for step in range(1, 5):
            stage.step(share(condition, step, world.slots(4)), step)
            if step == cut:
                model, state = stage.model_state(), stage.train_state()
                model, state = ({name: value.clone() for name, value in part.items()} for part in (model, state))
                torch.manual_seed(999)
                stage = DiffusionStage(conditioned(condition), world=world)
                stage.load_state(model, state)
        ends[f"{condition} {cut}"] = {**stage.model_state(), **stage.train_state()}
if world.rank == 0:
    torch.save(ends, sys.argv[1])
world.leave()
"""


def conditioned(condition: str) -> DiffusionTrainingConfig:
    """A small stage two with this condition, which is dropped now and then but for text."""
    extra = {"none": {}, "class": {"classes": 3}, "text": {"context_dim": 5}}[condition]
    dropped = DiffusionConfig(p_unconditional=0.5) if condition == "class" else DiffusionConfig()
    return config(model=dataclasses.replace(MODEL, condition=condition, **extra), diffusion=dropped)  # pyright: ignore


def share(condition: str, step: int, slots: range) -> LatentBatch:
    """Those slots of the batch of a step."""
    generator = torch.Generator().manual_seed(1000 + step)
    more = {"class": {"labels": torch.randint(0, 3, (4,), generator=generator)},
            "text": {"context": torch.randn(4, 2, 5, generator=generator)}}.get(condition, {})
    whole = batch(step, **more)
    cut = slice(slots.start, slots.stop)
    labels, context = (value if value is None else value[cut] for value in (whole.labels, whole.context))
    return LatentBatch(step, whole.g[cut], whole.moments[cut], labels, context)


@pytest.fixture(scope="module")
def ends_of_two(tmp_path_factory) -> dict[str, dict[str, Tensor]]:
    """Four steps on two ranks, undisturbed ("none 0") and taken up again after the second ("none 2"), of each condition."""
    out = str(tmp_path_factory.mktemp("two") / "ends.pt")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    group = [subprocess.Popen([sys.executable, "-c", TWO_RANKS, out], cwd=ROOT, env=os.environ | {
        "RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}) for rank in range(2)]
    try:
        assert [process.wait(timeout=300) for process in group] == [0, 0]
    finally:
        for process in group:
            process.kill()
            process.wait()
    return torch.load(out, weights_only=True)


@pytest.mark.slow
@pytest.mark.parametrize("condition", CONDITIONS)
def test_law_two_ranks_learn_what_one_does_and_go_on_bit_for_bit(ends_of_two, condition):
    whole, resumed = ends_of_two[f"{condition} 0"], ends_of_two[f"{condition} 2"]
    alone = DiffusionStage(conditioned(condition), world=World())
    for step in range(1, 5):
        alone.step(share(condition, step, range(4)), step)
    expected = {**alone.model_state(), **alone.train_state()}
    assert whole.keys() == resumed.keys() == expected.keys()
    for name, value in whole.items():
        assert torch.equal(value, resumed[name]), name
        if name.startswith("denoiser."):
            torch.testing.assert_close(value, expected[name], rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["eps", "v", "flow"])
@pytest.mark.parametrize("cut", [1, 4])
def test_law_a_state_taken_and_loaded_goes_on_bit_for_bit(objective, cut):
    one = config(diffusion=DiffusionConfig(objective=objective))
    whole, before = DiffusionStage(one, world=World()), DiffusionStage(one, world=World())
    trained(whole, 1, 6)
    trained(before, 1, cut)
    torch.manual_seed(999)                                          # global generators play no part
    after = DiffusionStage(one, world=World())
    after.load_state(before.model_state(), before.train_state())
    trained(after, cut + 1, 6)
    for name, value in {**whole.model_state(), **whole.train_state()}.items():
        assert torch.equal({**after.model_state(), **after.train_state()}[name], value), name


def test_golden_the_published_loss_comes_from_the_published_draws(monkeypatch):
    """The stage with the golden times and noise in the place of its own."""
    wanted, content = golden.tensors("stage_two"), official.read(golden.CHECKPOINT)
    model = importer.infer_config(content["model"]["sd"], content["model"]["args"])
    start = importer.denoiser(content["model"]["sd"], model, prefix="z_dm.", source="golden")
    stage = DiffusionStage(config(model=model), world=World(), start=start)
    monkeypatch.setattr("infd.training.latent_diffusion.sample_noise", lambda seed, g, shape, purpose="": (
        wanted["noise"] if shape else torch.zeros(len(g))))
    monkeypatch.setattr("infd.training.latent_diffusion.sample_uniform", lambda seed, g, purpose: (wanted["t"] + 0.5) / 1000)
    metrics = stage.step(LatentBatch(0, torch.arange(4), wanted["x0"]), 1)
    assert golden.relative_error(metrics["train/loss"], wanted["loss"]) <= 1e-5
    assert golden.relative_error(metrics["train/grad_norm"], wanted["loss_gradnorm"]) <= 1e-5


def test_golden_the_moving_average_moves_as_published():
    wanted = golden.tensors("stage_two")
    found = wanted["ema.before"].clone()
    from infd.training.optimizers import average_into

    average_into([found], [wanted["ema.source"]], 0.9999)
    assert golden.relative_error(found, wanted["ema.after"]) <= 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("accumulate", [2, 4])
def test_law_micro_batches_are_the_batch(accumulate):
    whole = DiffusionStage(config(), world=World())
    parts = DiffusionStage(config(loop=LoopConfig(steps=9, batch=4, accumulate=accumulate)), world=World())
    for step in (1, 2):
        found, wanted = parts.step(batch(step), step), whole.step(batch(step), step)
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)


def test_law_a_sample_is_noised_the_same_whoever_has_it():
    stage = DiffusionStage(config(), world=World())
    with torch.no_grad():
        all_of_them = stage.losses(stage.denoiser.eval(), batch(3), conditioned=True)
        one = batch(3)
        alone = stage.losses(stage.denoiser, LatentBatch(3, one.g[2:3], one.moments[2:3]), conditioned=True)
    torch.testing.assert_close(alone[0], all_of_them[2])


def test_law_a_gaussian_latent_is_sampled_by_its_number():
    stage = DiffusionStage(config(diffusion=DiffusionConfig(scale=2.0)), world=World())
    one = batch(5, channels=4)
    z = stage.latents(one)
    assert torch.equal(z, stage.latents(one)) and z.shape[1] == 2
    spread = (2 * z - one.moments[:, :2]) / (0.5 * one.moments[:, 2:]).exp()
    assert 0.8 < float(spread.std()) < 1.2 and abs(float(spread.mean())) < 0.2


def test_conditions_are_dropped_in_training_alone():
    model = dataclasses.replace(MODEL, condition="class", classes=3)
    stage = DiffusionStage(config(model=model, diffusion=DiffusionConfig(p_unconditional=0.5)), world=World())
    labels = torch.tensor([0, 1, 2, 0])
    kept: list[Tensor | None] = []
    forward = stage.denoiser.forward
    stage.denoiser.forward = lambda *a: kept.append(a[-1]) or forward(*a)  # pyright: ignore
    for step in range(1, 9):
        stage.step(batch(step, labels=labels), step)
    share = torch.cat([keep for keep in kept if keep is not None]).float().mean()
    assert len(kept) == 8 and 0.25 < float(share) < 0.75
    with torch.no_grad():
        stage.losses(stage.denoiser, batch(1, labels=labels), conditioned=True)
    assert kept[-1] is None
    with pytest.raises(ConfigError, match="p_unconditional=0.5: must be 0 without a condition to drop"):
        config(diffusion=DiffusionConfig(p_unconditional=0.5))


def test_validation_is_the_same_each_time_and_follows_the_average():
    stage = DiffusionStage(config(), world=World(), validation=[batch(100), batch(101)])
    first = stage.validate()
    assert first == stage.validate() and first["val/loss"] > 0
    trained(stage, 1, 5)
    assert stage.validate() != first and stage.shown is stage.average and stage.finite()


@pytest.mark.parametrize("condition", ["none", "class", "text"])
def test_law_a_denoiser_begins_by_saying_nothing(condition):
    """As published: the last layers of ResBlocks, attentions and of all are zeros."""
    denoiser = Denoiser(conditioned(condition).model)
    names = {name for name, value in denoiser.named_parameters() if not value.any() and name.endswith("weight")}
    blocks = {name.rsplit(".conv2", 1)[0] for name, _ in denoiser.named_parameters() if ".conv2." in name}
    assert {f"{block}.conv2.weight" for block in blocks} | {"net.conv_out.weight"} <= names
    attentions = {name for name, _ in denoiser.named_parameters() if name.endswith(".to_out.0.weight")}
    assert attentions and attentions <= names
    with torch.no_grad():
        assert not denoiser(torch.randn(2, 2, 8, 8), torch.tensor([3, 700])).any()
