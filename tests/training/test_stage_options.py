"""Options beyond the paper: each changes what it says and nothing else."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor
from training_batches import random_batch, small

from infd import checkpoint
from infd.config import AutoencoderTrainingConfig, CropConfig, DiscriminatorConfig
from infd.config_form import flat
from infd.errors import CheckpointError, ConfigError
from infd.generation.load import load_autoencoder
from infd.training.autoencoder import AutoencoderStage, codebook_use
from infd.training.optimizers import average_into
from infd.training.scales import ScaleMeans, octaves
from infd.training.world import World


def stage_of(config: AutoencoderTrainingConfig, **options: Any) -> AutoencoderStage:
    return AutoencoderStage(config, world=World(), lpips=None, validation=[], **options)


def changed(config: AutoencoderTrainingConfig, part: str, **values: object) -> AutoencoderTrainingConfig:
    return dataclasses.replace(config, **{part: dataclasses.replace(getattr(config, part), **values)})


def gradients(stage: AutoencoderStage) -> dict[str, Tensor]:
    networks = {"generator": stage.generator, "discriminator": stage.discriminator}
    return {f"{name}.{key}": parameter.grad for name, network in networks.items() if network is not None
            for key, parameter in network.named_parameters() if parameter.grad is not None}


def assert_near(found: dict[str, Tensor], wanted: dict[str, Tensor], relative: float) -> None:
    """Each tensor to `relative` of its norm; a gradient that is 0 but for rounding, to that of all."""
    whole = torch.stack([value.norm() for value in wanted.values()]).norm()
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert (found[name] - value).norm() <= relative * (value.norm() + 1e-2 * whole), name


def counted_calls(network: torch.nn.Module) -> list[None]:
    """Grows by one with each call of `network`."""
    calls: list[None] = []
    network.register_forward_hook(lambda *_: calls.append(None))
    return calls


# ---------------------------------------------------------------- micro-batches


@pytest.mark.slow
@pytest.mark.parametrize("accumulate", [2, 4])
@pytest.mark.parametrize("loss", [{}, {"adaptive_gan_weight": False}, {"query_pad_px": 3}, {"fresh_fake": True},
                                  {"gan_loss": "relativistic"}], ids=str)
def test_law_micro_batches_equal_the_whole_batch(accumulate, loss):
    config = changed(small(gan_from_step=1, **loss), "discriminator", norm="group")
    whole, cut = stage_of(config), stage_of(changed(config, "loop", accumulate=accumulate))
    for step in (1, 2):
        wanted, found = (stage.step(random_batch(config, step), step) for stage in (whole, cut))
        for name in ("train/loss", "train/gan_weight", "train/disc_loss", "train/grad_norm", "train/disc_grad_norm"):
            torch.testing.assert_close(found[name], wanted[name], rtol=2e-4, atol=1e-6, msg=name)
        if step == 1:                                              # later, Adam has enlarged the rounding
            assert_near(gradients(cut), gradients(whole), 1e-4)


# ---------------------------------------------------------------- optimizer


def test_law_clipping_scales_the_gradient_to_the_norm():
    config = small()
    plain, clipped = stage_of(config), stage_of(changed(config, "optimizer", clip_norm=0.01))
    norm = plain.step(random_batch(config, 1), 1)["train/grad_norm"]
    assert clipped.step(random_batch(config, 1), 1)["train/grad_norm"] == norm > 0.01
    scale = 0.01 / norm.item()
    assert_near(gradients(clipped), {name: value * scale for name, value in gradients(plain).items()}, 1e-5)
    loose = stage_of(changed(config, "optimizer", clip_norm=1e9))
    loose.step(random_batch(config, 1), 1)
    assert_near(gradients(loose), gradients(plain), 0.0)


def test_law_the_average_is_the_recursion_and_goes_with_the_checkpoint():
    config = changed(small(), "optimizer", ema_decay=0.75)
    stage = stage_of(config)
    wanted = [parameter.detach().clone() for parameter in stage.autoencoder.parameters()]
    for step in (1, 2, 3):
        stage.step(random_batch(config, step), step)
        wanted = [0.75 * old + 0.25 * new.detach() for old, new in zip(wanted, stage.autoencoder.parameters(), strict=True)]
    torch.testing.assert_close(list(stage.shown.parameters()), wanted)
    other = stage_of(config)
    other.load_state(stage.model_state(), stage.train_state())
    torch.testing.assert_close(list(other.shown.parameters()), list(stage.shown.parameters()), rtol=0, atol=0)
    plain = stage_of(small())
    assert plain.shown is plain.autoencoder and stage.shown is not stage.autoencoder


def test_law_averaging_many_tensors_is_averaging_each():
    averages, parameters = [torch.randn(3), torch.randn(2, 2)], [torch.randn(3), torch.randn(2, 2)]
    wanted = [0.9 * a + 0.1 * p for a, p in zip(averages, parameters, strict=True)]
    average_into(averages, parameters, 0.9)
    torch.testing.assert_close(averages, wanted)


# ---------------------------------------------------------------- losses


def test_law_scale_equivariance_compares_the_halved_latent_with_the_halved_view():
    config = small(scale_equivariance=0.5)
    stage = stage_of(config)
    lowres = torch.rand(2, 3, 64, 64) * 2 - 1
    z = stage.autoencoder.encode(lowres)
    found = stage.autoencoder.scale_equivariance(lowres, z)
    half = [torch.nn.functional.interpolate(image, scale_factor=0.5, mode="area") for image in (z, lowres)]
    wanted = (stage.autoencoder.field(half[0]).render(32, 32, statistics="whole") - half[1]).abs().mean()
    torch.testing.assert_close(found.detach(), wanted)
    found.backward()
    assert stage.autoencoder.quant_conv.weight.grad is not None
    metrics = stage.step(random_batch(config, 1), 1)
    plain = stage_of(small()).step(random_batch(config, 1), 1)
    torch.testing.assert_close(metrics["train/loss"], plain["train/loss"] + 0.5 * metrics["train/scale_equivariance"])


@pytest.mark.parametrize("loss", [{}, {"gan_loss": "relativistic"}])
def test_law_logits_that_the_discriminator_takes_over_are_those_it_would_make(loss):
    """Bit for bit in float32; running statistics alone, which no training reads, see the fakes once less."""
    config = small(gan_from_step=1, **loss)
    ours, anew = stage_of(config), stage_of(config)
    assert ours.discriminator is not None and anew.discriminator is not None
    calls = counted_calls(ours.discriminator), counted_calls(anew.discriminator)
    of_the_stage = anew.discriminator_loss
    anew.discriminator_loss = lambda real, fake, *, known_logits=None: of_the_stage(real, fake)
    for step in range(1, 4):
        found, wanted = (stage.step(random_batch(config, step), step) for stage in (ours, anew))
        assert found == wanted
    weights, others = (dict(stage.discriminator.named_parameters()) for stage in (ours, anew) if stage.discriminator)
    assert all(torch.equal(weights[name], others[name]) for name in weights)
    assert len(calls[0]) == len(calls[1]) - 3


def test_law_the_penalty_keeps_the_discriminator_flat():
    """Two discriminators learn the same patches; the one that pays more for its gradient ends with less of it."""
    real, fake = torch.rand(2, 4, 3, 48, 48, generator=torch.Generator().manual_seed(1)) * 2 - 1
    ends = []
    for gamma in (1e-9, 1e3):
        plain = changed(small(gan_loss="relativistic"), "discriminator", norm="none")
        stage = stage_of(changed(plain, "loss", gradient_penalty=gamma))
        assert stage.discriminator is not None
        optimizer = torch.optim.Adam(stage.discriminator.parameters(), lr=1e-3)
        for _ in range(12):
            optimizer.zero_grad()
            loss, metrics = stage.discriminator_loss(real, fake)
            loss.backward()
            optimizer.step()
        ends.append(metrics["train/disc_penalty"].item())
    assert ends[1] < 0.1 * ends[0]


def test_a_patch_that_is_the_whole_view_is_not_padded():
    plain, padded = stage_of(small(gan=0.0)), stage_of(small(gan=0.0, query_pad_px=8))
    batch = random_batch(plain.config, 1)
    batch.r[:], batch.y[:], batch.x[:] = 48, 0, 0
    torch.testing.assert_close(padded.step(batch, 1)["train/loss"], plain.step(batch, 1)["train/loss"])


@pytest.mark.parametrize("pad_px", [0, 8])
def test_fields_of_a_stage_and_of_its_checkpoint_know_what_the_norms_saw(tmp_path, pad_px):
    stage = stage_of(changed(small(gan=0.0, query_pad_px=pad_px), "optimizer", ema_decay=0.5))
    checkpoint.save(str(tmp_path / "saved"), model=stage.model_state(), train_state={},
                    meta={"stage": "autoencoder", "step": 1, "config": flat(stage.config)})
    loaded = load_autoencoder(str(tmp_path / "saved"))
    for network in (stage.autoencoder, stage.shown, loaded):
        assert network.patch_px == stage.config.crop.patch_px + 2 * pad_px
        assert network.lowres_px == stage.config.crop.lowres_px


# ---------------------------------------------------------------- parts that stay


def test_law_frozen_parts_keep_the_weights_they_start_from():
    first, config = stage_of(small()), dataclasses.replace(small(), freeze=("encoder",))
    start = {name: value + 0.01 for name, value in first.model_state().items()}
    stage = stage_of(config, start=start)
    for step in (1, 2):
        stage.step(random_batch(config, step), step)
    for name, value in stage.autoencoder.state_dict().items():
        kept = name.startswith(("encoder.", "quant_conv.", "quantizer."))
        assert torch.equal(value, start[f"autoencoder.{name}"]) == kept, name
    assert not any(name.startswith("autoencoder.encoder.") for name in stage.train_state())


def test_error_starting_weights_that_do_not_fit():
    with pytest.raises(CheckpointError, match=r"starting checkpoint's autoencoder: \d+ tensors missing \(decoder"):
        stage_of(small(), start={})
    with pytest.raises(ConfigError, match="freeze=renderer: expected encoder or decoder"):
        dataclasses.replace(small(), freeze=("renderer",))


# ---------------------------------------------------------------- what is watched


def test_law_perplexity_counts_the_codes_in_use():
    uniform = codebook_use(torch.arange(32).reshape(2, 4, 4), 64)
    assert uniform["train/codebook_perplexity"].item() == pytest.approx(32, rel=1e-5)
    assert uniform["train/codebook_use"].item() == 0.5
    dead = codebook_use(torch.full((2, 4, 4), 7), 64)
    assert dead["train/codebook_perplexity"].item() == pytest.approx(1) and dead["train/codebook_use"].item() == 1 / 64


@pytest.mark.parametrize(
    ("low", "high", "wanted"), [(256, 1024, [512, 1024]), (48, 512, [64, 128, 256, 512]), (256, 256, [256])])
def test_law_octaves_end_at_the_largest_side(low, high, wanted):
    assert octaves(CropConfig(patch_px=low, r_min=low, r_max=high)) == wanted


def test_law_means_by_scale_are_those_of_their_samples():
    crop = CropConfig(r_min=256, r_max=1024)
    found = ScaleMeans(["val/l1"], crop, World())
    assert found.means() == {}
    r, values = torch.tensor([256, 512, 513, 700, 1024]), torch.tensor([1.0, 2, 3, 5, 10])
    found.add(r[:2], {"val/l1": values[:2]})
    found.add(r[2:], {"val/l1": values[2:]})
    assert found.means() == {"val/l1": 21 / 5, "val/l1_r_to_512": 1.5, "val/l1_r_to_1024": 6.0}


def test_law_a_discriminator_without_batch_norm_sees_each_sample_alone():
    for norm in ("group", "none"):
        stage = stage_of(dataclasses.replace(small(), discriminator=DiscriminatorConfig(base_dim=16, layers=2, norm=norm)))
        assert stage.discriminator is not None
        images = torch.rand(4, 3, 48, 48)
        apart = torch.cat([stage.discriminator(image[None]) for image in images])
        torch.testing.assert_close(stage.discriminator(images), apart, rtol=1e-4, atol=1e-6)


def test_law_moments_come_back_in_the_layout_of_their_weights():
    """Fused Adam asks for it; a checkpoint holds them row by row."""
    config = changed(small(), "loop", channels_last=True)
    stage = stage_of(config)
    stage.step(random_batch(config, 1), 1)
    other = stage_of(config)
    state = {name: tensor.contiguous() for name, tensor in stage.train_state().items()}
    other.load_state({name: tensor.contiguous() for name, tensor in stage.model_state().items()}, state)
    checked = 0
    for optimizer in (other.generator_adam, other.discriminator_adam):
        assert optimizer is not None
        for parameter, moments in optimizer.state.items():
            checked += parameter.dim() == 4 and not parameter.is_contiguous()
            assert moments["exp_avg"].stride() == moments["exp_avg_sq"].stride() == parameter.stride()
    assert checked > 5
    for name, value in stage.train_state().items():
        assert torch.equal(other.train_state()[name], value)


def test_error_a_gradient_penalty_with_batch_norm():
    with pytest.raises(ConfigError, match="discriminator.norm=batch: must be group or none with loss.gradient_penalty"):
        small(gradient_penalty=1.0)
