"""Laws of objectives and samplers: what each target says of z, weights, seeds, and exact denoisers."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from models_at_random import awake

from infd.config import DenoiserConfig, DiffusionConfig
from infd.diffusion import objectives, samplers
from infd.errors import ConfigError
from infd.models.denoiser import Denoiser

SMALL = DenoiserConfig(widths=(8, 16), blocks=1, head_dim=8, norm_groups=4, z_dim=2)
DISCRETE = ("ddpm", "ddim", "dpm", "unipc")


class Knows:
    """A denoiser of data that is one latent: what the objective asks for follows from z_t and t."""

    def __init__(self, latent: torch.Tensor, config: DiffusionConfig) -> None:
        self.latent, self.process, self.config = latent, objectives.objective(config), SMALL

    def parameters(self):
        return iter([torch.zeros(1)])

    def __call__(self, z_t, t, labels=None, context=None):
        z = self.latent.expand_as(z_t)
        if isinstance(self.process, objectives.Flow):
            part = (t / objectives.FLOW_TIMES)[:, None, None, None]
            return (z_t - z) / part
        signal, spread = self.process.schedule.signal(t.long()), self.process.schedule.noise(t.long())
        noise = (z_t - signal * z) / spread
        return noise if self.process.config.objective == "eps" else signal * noise - spread * z


@pytest.mark.parametrize(("objective", "sampler"), [
    *((objective, sampler) for objective in ("eps", "v") for sampler in DISCRETE), ("flow", "euler"), ("flow", "heun")])
def test_law_every_sampler_finds_the_latent_that_its_denoiser_knows(objective, sampler):
    config = DiffusionConfig(objective=objective)
    latent = torch.randn(1, 2, 4, 4)
    found = samplers.sample(Knows(latent, config), config, seeds=[3, 4], side=4, steps=25, sampler=sampler)  # pyright: ignore
    assert (found - latent).abs().max() < 0.05


@given(t=st.integers(0, 999), schedule=st.sampled_from(["linear", "scaled_linear"]))
def test_law_noise_and_v_say_the_same_of_z(t, schedule):
    z, noise, when = torch.randn(1, 2, 3, 3), torch.randn(1, 2, 3, 3), torch.tensor([t])
    made = {name: objectives.Discrete(DiffusionConfig(objective=name, schedule=schedule)) for name in ("eps", "v")}
    found = {name: process.at(z, noise, when) for name, process in made.items()}
    signal, spread = made["eps"].schedule.signal(when), made["eps"].schedule.noise(when)
    assert torch.equal(found["eps"].z_t, found["v"].z_t)
    torch.testing.assert_close(signal * found["v"].z_t - spread * found["v"].target, z, rtol=0, atol=1e-5)
    torch.testing.assert_close(spread * found["v"].z_t + signal * found["v"].target, noise, rtol=0, atol=1e-5)


@given(t=st.integers(0, 999), gamma=st.sampled_from([1.0, 5.0]))
def test_law_min_snr_weighs_the_error_of_z_alike_for_noise_and_v(t, gamma):
    """An error of z becomes one of noise times the root of SNR, one of v times the root of SNR + 1."""
    when = torch.tensor([t])
    noise, v = (objectives.Discrete(DiffusionConfig(objective=name, min_snr_gamma=gamma)) for name in ("eps", "v"))
    snr = noise.schedule.snr(when)
    torch.testing.assert_close(noise.weight(when) * snr, v.weight(when) * (snr + 1))
    torch.testing.assert_close(noise.weight(when) * snr, snr.clamp(max=gamma))


def test_law_a_flow_is_a_straight_path_and_its_times_are_logit_normal():
    z, noise = torch.randn(3, 2, 3, 3), torch.randn(3, 2, 3, 3)
    flow = objectives.Flow(DiffusionConfig(objective="flow", flow_mean=0.5, flow_std=0.7))
    ends = flow.at(z, noise, torch.tensor([0.0, 1.0, 0.25]))
    torch.testing.assert_close(ends.z_t[0], z[0])
    torch.testing.assert_close(ends.z_t[1], noise[1])
    torch.testing.assert_close(ends.z_t[2] + 0.75 * ends.target[2], noise[2])
    normal = torch.randn(20_000)
    time = flow.noised(torch.zeros(20_000, 1, 1, 1), torch.zeros(20_000, 1, 1, 1), uniform=normal, normal=normal).time
    logit = torch.logit(time / objectives.FLOW_TIMES)
    assert float(logit.mean()) == pytest.approx(0.5, abs=0.03) and float(logit.std()) == pytest.approx(0.7, abs=0.03)


@pytest.mark.slow
@pytest.mark.parametrize("sampler", [*DISCRETE, *samplers.FLOWS])
def test_law_an_image_depends_on_its_seed_and_not_on_its_batch(sampler):
    torch.manual_seed(0)
    net, config = awake(Denoiser(SMALL)).eval(), DiffusionConfig(objective="flow" if sampler in samplers.FLOWS else "eps")
    many = samplers.sample(net, config, seeds=[5, 6, 7], side=4, steps=8, sampler=sampler)
    for i, seed in enumerate((5, 6, 7)):
        torch.manual_seed(seed)                                     # global generators play no part
        alone = samplers.sample(net, config, seeds=[seed], side=4, steps=8, sampler=sampler)
        torch.testing.assert_close(alone[0], many[i], rtol=1e-4, atol=1e-4)
    assert (many[0] - many[1]).abs().max() > 0.1


def test_law_guidance_of_one_is_none_and_dropped_conditions_are_unconditional():
    torch.manual_seed(0)
    z, t = torch.randn(2, 2, 4, 4), torch.tensor([10, 500])
    for config, given_ in ((replace(SMALL, condition="class", classes=3), {"labels": torch.tensor([0, 2])}),
                           (replace(SMALL, condition="text", context_dim=6), {"context": torch.randn(2, 5, 6)})):
        net = awake(Denoiser(config)).eval()
        with torch.no_grad():
            said, plain = net(z, t, **given_), net(z, t)
            dropped = net(z, t, **given_, keep=torch.tensor([True, False]))
            led = samplers.guided(net, z, t, 3.0, given_.get("labels"), given_.get("context"))
        torch.testing.assert_close(dropped[0], said[0])
        torch.testing.assert_close(dropped[1], plain[1], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(led, plain + 3 * (said - plain))
        assert (said - plain).abs().max() > 1e-6


@given(steps=st.integers(1, 1000), sampler=st.sampled_from(DISCRETE))
def test_law_times_fall_from_noise_to_the_image_or_the_number_of_steps_is_refused(steps, sampler):
    try:
        samplers.require_times(steps, sampler, 1000)
    except ConfigError:
        assert steps == 1000 if sampler in ("dpm", "unipc") else 100 < steps < 850
        return
    process = samplers.scheduler(DiffusionConfig(), sampler)
    process.set_timesteps(steps)
    times = process.timesteps.tolist()
    assert len(times) == steps and all(a > b for a, b in pairwise(times))
    assert times[0] + 1000 // steps >= 850


def test_error_steps_that_would_begin_amid_the_process():
    with pytest.raises(ConfigError, match="steps=600: ddim would begin at time 599 of 1000, no pure noise; take 500 or 850"):
        samplers.require_times(600, "ddim", 1000)
    with pytest.raises(ConfigError, match="steps=1000: dpm takes at most 999"):
        samplers.require_times(1000, "dpm", 1000)
    with pytest.raises(ConfigError, match="steps=0: must lie in 1 to 1000"):
        samplers.require_times(0, "heun", 1000)


def test_error_a_sampler_of_the_other_kind():
    with pytest.raises(ConfigError, match="sampler=euler: the denoiser's objective is eps; use ddpm or ddim or dpm or unipc"):
        samplers.scheduler(DiffusionConfig(), "euler")
    with pytest.raises(ConfigError, match="sampler=ddim: the denoiser's objective is flow; use euler or heun"):
        samplers.scheduler(DiffusionConfig(objective="flow"), "ddim")
