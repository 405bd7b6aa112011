"""Stage two against tensors of the published code: schedule, forward process, denoiser, loss and its gradients, DDIM."""

import pytest
import torch
from refs import golden

from infd.config import DenoiserConfig, DiffusionConfig
from infd.diffusion import objectives, samplers
from infd.diffusion.schedules import Schedule
from infd.importers import denoiser as importer
from infd.importers import official
from infd.models.denoiser import Denoiser

PARITY = 1e-5
PUBLISHED = DiffusionConfig()


def network(prefix: str) -> Denoiser:
    content = official.read(golden.CHECKPOINT)
    config = importer.infer_config(content["model"]["sd"], content["model"]["args"])
    made = Denoiser(config)
    made.load_state_dict(importer.denoiser(content["model"]["sd"], config, prefix=prefix, source="golden"))
    return made


@pytest.fixture(scope="module")
def wanted() -> dict[str, torch.Tensor]:
    return golden.tensors("stage_two")


@pytest.mark.slow
def test_golden_the_papers_denoiser_has_its_parameters():
    with torch.device("meta"):
        made = Denoiser(DenoiserConfig())
    assert sum(parameter.numel() for parameter in made.parameters()) == 274_056_163


def test_golden_schedule_and_forward_process(wanted):
    schedule = Schedule.of(PUBLISHED)
    torch.testing.assert_close(schedule.betas, wanted["betas"], rtol=1e-12, atol=0)
    torch.testing.assert_close(schedule.alphas_cumprod, wanted["alphas_cumprod"], rtol=1e-12, atol=0)
    found = objectives.Discrete(PUBLISHED).at(wanted["x0"], wanted["noise"], wanted["t"])
    assert golden.relative_error(found.z_t, wanted["q_sample"]) <= PARITY
    ldm = Schedule.of(DiffusionConfig(schedule="scaled_linear")).alphas_cumprod
    assert float(ldm[999]) == pytest.approx(1.423e-4, rel=1e-3) and float(ldm[500]) == pytest.approx(0.1149, rel=1e-3)


@pytest.mark.slow
def test_golden_denoiser_loss_and_gradients(wanted):
    noised = objectives.Discrete(PUBLISHED).at(wanted["x0"], wanted["noise"], wanted["t"])
    net = network("z_dm.")
    said = net(noised.z_t, wanted["t"])
    losses = objectives.loss(said, noised)
    assert golden.relative_error(said.detach(), wanted["eps"]) <= PARITY
    assert golden.relative_error(losses.detach(), wanted["loss_per_sample"]) <= PARITY
    assert golden.relative_error(losses.mean().detach(), wanted["loss"]) <= PARITY
    losses.mean().backward()
    grads = {importer.official_name(name.removeprefix("net."), net.config): parameter.grad
             for name, parameter in net.named_parameters()}
    norm = torch.stack([grad.norm() for grad in grads.values() if grad is not None]).norm()
    assert golden.relative_error(norm, wanted["loss_gradnorm"]) <= PARITY
    stored = {name.removeprefix("loss_grad."): value for name, value in wanted.items() if name.startswith("loss_grad.")}
    assert len(stored) == 7
    for name, value in stored.items():  # q, k, v together: that of the key's bias alone is 0 but for rounding
        parts = importer.parts_of(name, value, net.config.head_dim) if ".qkv." in name else {name: value}
        found = torch.cat([tensor.flatten() for part in parts if (tensor := grads[part]) is not None])
        assert golden.relative_error(found, torch.cat([part.flatten() for part in parts.values()])) <= PARITY, name
    with torch.no_grad():
        assert golden.relative_error(network("z_dm_ema.")(noised.z_t, wanted["t"]), wanted["eps_ema"]) <= PARITY


@pytest.mark.slow
@pytest.mark.parametrize("eta", [0, 1])
def test_golden_ddim_of_200_steps(wanted, eta, monkeypatch):
    drawn = iter(wanted["ddim.eta1.noise"])
    monkeypatch.setattr("diffusers.schedulers.scheduling_ddim.randn_tensor", lambda *_, **__: next(drawn)[None])
    seen: dict[int, torch.Tensor] = {}
    found = samplers.denoised(
        network("z_dm_ema."), PUBLISHED, wanted["ddim.x_T"], generators=[torch.Generator()], eta=float(eta),
        told=lambda step, z: seen.update({step: z}))
    assert golden.relative_error(found, wanted[f"ddim.eta{eta}.sample"]) <= 1e-4
    stored = {name: value for name, value in wanted.items() if name.startswith(f"ddim.eta{eta}.after_step_")}
    assert len(stored) == 7
    for name, value in stored.items():
        assert golden.relative_error(seen[int(name.rsplit("_", 1)[1])], value) <= 1e-4, name


def test_golden_a_generated_latent_is_quantized_decoded_and_rendered(wanted):
    autoencoder = golden.networks().autoencoder.eval()
    with torch.no_grad(), golden.published_ties():
        z = wanted["ddim.eta1.sample"]
        codes = autoencoder.quantize(z).codes
        image = autoencoder.field(z).render(48, 48, statistics="tile", tile_px=32)
    assert codes is not None and torch.equal(codes.flatten(), wanted["generate.indices"].flatten())
    assert (image - wanted["generate.image_48"]).abs().max() <= 2e-4
