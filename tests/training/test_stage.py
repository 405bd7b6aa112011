"""The stage-one update: the published numbers, and equality of its savings with the published way."""

import dataclasses

import pytest
import torch
from refs import golden
from refs.published_step import PatchBatch, PublishedTrainer
from training_batches import random_batch, small

from benchmarks.published_loop import Published
from infd.config import AutoencoderTrainingConfig, CropConfig, DiscriminatorConfig, LoopConfig, LossConfig, OptimizerConfig
from infd.data.loader import Batch
from infd.importers.official import official_name
from infd.training.autoencoder import AutoencoderStage
from infd.training.noise import sample_noise
from infd.training.optimizers import learning_rate
from infd.training.world import World

PARITY = 1e-5
"""Losses may differ from the published run by this, relative; torch's convolutions sum in another order."""


def published_stage(**loss: object) -> AutoencoderStage:
    """A stage that holds the golden checkpoint's networks."""
    networks = golden.networks()
    config = AutoencoderTrainingConfig(
        model=networks.autoencoder.config, discriminator=DiscriminatorConfig(base_dim=4, layers=3),
        crop=CropConfig(patch_px=32, lowres_px=32, r_min=32, r_max=96), loss=LossConfig(**loss),  # pyright: ignore
        loop=LoopConfig(steps=3, batch=2))
    stage = AutoencoderStage(config, world=World(), lpips=networks.lpips, validation=[])
    stage.load_state({**{f"autoencoder.{name}": value for name, value in networks.autoencoder.state_dict().items()},
                      **{f"discriminator.{name}": value for name, value in networks.discriminator.state_dict().items()}}, {})
    return stage


def golden_batch() -> Batch:
    """The golden batch as a loader gives it: bytes, and where the patches lie."""
    tensors = golden.tensors("stage_one")
    r, y, x = golden.crops()

    def pixels(image: torch.Tensor) -> torch.Tensor:
        return ((image + 1) * 127.5).round().byte()

    return Batch(step=0, g=torch.arange(2), lowres=pixels(tensors["batch.inp"]), patch=pixels(tensors["batch.gt"]),
                 r=r, y=y, x=x, rows=[0, 1])


AFTER = {"autoencoder.quant_conv.weight": "encoder.1.weight",
         "autoencoder.renderer.conv_out.weight": "renderer.net.conv_out.weight",
         "discriminator.net.11.weight": "disc.main.11.weight",
         "autoencoder.quantizer.embedding.weight": "quantizer.embedding.weight"}
"""Tensors whose values after three iterations are golden: our names, the published ones."""


@pytest.mark.slow
def test_golden_three_published_iterations():
    wanted, stage = golden.tensors("stage_one"), published_stage(fresh_fake=True)
    names = {"loss": "train/loss", "adaptive_g_w": "train/gan_weight", "gan_g_loss": "train/gan", "l1_loss": "train/l1",
             "perc_loss": "train/lpips", "quant_loss": "train/quantizer", "psnr": "train/psnr", "disc.loss": "train/disc_loss",
             "disc.disc_logits_real": "train/logits_real", "disc.disc_logits_fake": "train/logits_fake"}
    scale = {"adaptive_g_w": 0.75}
    with golden.published_ties():
        for step in range(3):
            metrics = stage.step(golden_batch(), step + 1)
            for name, ours in names.items():
                found = metrics[ours] / scale.get(name, 1.0)
                error = golden.relative_error(found, wanted[f"train{step}.{name}"])
                assert error <= PARITY, f"train{step}.{name}: {error:.1e}"
    state = stage.model_state()
    for ours, theirs in AFTER.items():
        assert golden.relative_error(state[ours], wanted[f"train2.after.{theirs}"]) <= PARITY


@pytest.mark.slow
def test_golden_the_benchmarks_published_loop_is_the_published_one():
    """What `benchmarks/train_step.py` compares ours with ends three iterations with the published weights."""
    wanted, stage = golden.tensors("stage_one"), published_stage(fresh_fake=True)
    with golden.published_ties():
        for step in range(3):
            Published(stage=stage).iteration(golden_batch(), step + 1)
    for ours, theirs in AFTER.items():
        assert golden.relative_error(stage.model_state()[ours], wanted[f"train2.after.{theirs}"]) <= PARITY, ours


def test_golden_named_gradients_of_the_first_iteration():
    """All that are stored, of the generator's loss and of the discriminator's, at 1e-5 of their norm."""
    wanted, stage = golden.tensors("stage_one"), published_stage(fresh_fake=True)
    with golden.published_ties():
        stage.step(golden_batch(), 1)
    assert stage.discriminator is not None
    found = {official_name(f"{part}.{name}", levels=3): parameter.grad
             for part, network in (("autoencoder", stage.autoencoder), ("discriminator", stage.discriminator))
             for name, parameter in network.named_parameters() if parameter.grad is not None}
    stored = {name.removeprefix(prefix): tensor for prefix in ("train0.grad.", "train0.disc.grad.")
              for name, tensor in wanted.items() if name.startswith(prefix)}
    errors = {name: golden.relative_error(found[name], tensor) for name, tensor in stored.items()}
    assert len(stored) == 20 and max(errors.values()) <= PARITY, errors
    for part in ("encoder", "quantizer", "decoder", "renderer"):
        norm = torch.stack([grad.norm() for name, grad in found.items() if name.startswith(f"{part}.")]).norm()
        assert golden.relative_error(norm, wanted[f"train0.gradnorm.{part}"]) <= PARITY, part
    for name, value in stage.discriminator.state_dict().items():
        if (known := wanted.get(f"train0.after_d.{official_name(f'discriminator.{name}', levels=3)}")) is not None:
            assert golden.relative_error(value, known) <= PARITY, name


@pytest.mark.slow
@pytest.mark.parametrize("adaptive", [True, False])
def test_ref_one_backward_equals_the_published_three(adaptive):
    """Weights after one step: ours walks LPIPS and the discriminator once each, the reference twice."""
    networks = golden.networks()
    stage = published_stage(fresh_fake=True, adaptive_gan_weight=adaptive)
    inputs = stage.inputs(golden_batch())
    trainer = PublishedTrainer(networks.autoencoder, networks.discriminator, networks.lpips)
    batch = PatchBatch(inputs.lowres, inputs.patch, inputs.r, inputs.y, inputs.x)
    terms = trainer.generator_loss(batch, adaptive=adaptive)
    trainer.generator_adam.zero_grad()
    terms["loss"].backward()
    reference = {name: parameter.grad.clone() for name, parameter in networks.autoencoder.named_parameters()
                 if parameter.grad is not None}

    stage.step(golden_batch(), 1)
    rounding = 1e-6 * torch.stack([gradient.norm() for gradient in reference.values()]).norm()
    for name, parameter in stage.autoencoder.named_parameters():      # that of attention's key bias is 0 but for rounding
        assert parameter.grad is not None
        error = (parameter.grad - reference[name]).norm()
        assert error <= 1e-4 * reference[name].norm() + rounding, f"{name}: {error:.1e} of {reference[name].norm():.1e}"


def run(stage: AutoencoderStage, first: int, last: int) -> None:
    for step in range(first, last + 1):
        stage.step(random_batch(stage.config, step), step)


@pytest.mark.slow
@pytest.mark.parametrize("quantizer", ["kl", "vq"])
@pytest.mark.parametrize("cut", [1, 3])
def test_law_a_state_taken_and_loaded_goes_on_bit_for_bit(quantizer, cut):
    config = small(quantizer=1.0)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, quantizer=quantizer, codebook_size=16))
    whole = AutoencoderStage(config, world=World(), lpips=None, validation=[])
    run(whole, 1, 5)

    before = AutoencoderStage(config, world=World(), lpips=None, validation=[])
    run(before, 1, cut)
    after = AutoencoderStage(dataclasses.replace(config, loop=dataclasses.replace(config.loop, seed=0)), world=World(),
                             lpips=None, validation=[])
    torch.manual_seed(12345)                                       # global generators play no part
    after.load_state(before.model_state(), before.train_state())
    run(after, cut + 1, 5)
    for name, tensor in whole.model_state().items():
        torch.testing.assert_close(after.model_state()[name], tensor, rtol=0, atol=0, msg=name)
    for name, tensor in whole.train_state().items():
        torch.testing.assert_close(after.train_state()[name], tensor, rtol=0, atol=0, msg=name)


@pytest.mark.slow
def test_bfloat16_stays_near_float32():
    config = small(gan=0.0)
    half = dataclasses.replace(config, loop=dataclasses.replace(config.loop, precision="bfloat16"))
    losses = []
    for one in (config, half):
        stage = AutoencoderStage(one, world=World(), lpips=None, validation=[])
        losses.append([stage.step(random_batch(one, step), step)["train/loss"] for step in range(1, 6)])
    torch.testing.assert_close(torch.stack(losses[1]), torch.stack(losses[0]), rtol=0.02, atol=0)


def test_law_noise_is_a_function_of_seed_and_sample_alone():
    together = sample_noise(7, [3, 4, 5], (2, 4, 4))
    apart = torch.cat([sample_noise(7, [g], (2, 4, 4)) for g in (3, 4, 5)])
    torch.testing.assert_close(together, apart, rtol=0, atol=0)
    assert not torch.equal(together[0], together[1])
    assert not torch.equal(together, sample_noise(8, [3, 4, 5], (2, 4, 4)))


def test_learning_rate_rises_stays_and_falls():
    config = OptimizerConfig(lr=1.0, warmup_steps=10, decay_from_step=20, decay_to_step=40)
    rates = [learning_rate(config, step) for step in (1, 5, 10, 20, 30, 40, 99)]
    assert rates == pytest.approx([0.1, 0.5, 1.0, 1.0, 0.505, 0.01, 0.01])
    assert {learning_rate(OptimizerConfig(), step) for step in (1, 10**6)} == {3.6e-5}
