"""Presets: the published figures, sizes on the meta device, plans, and presets from files."""

import json
from dataclasses import replace

import pytest
import torch
from pictures import encoded, picture

from infd.config import IngestConfig
from infd.config_form import flat
from infd.data.order import Order
from infd.data.snapshot import Manifest, open_dataset, write_dataset
from infd.errors import ConfigError
from infd.models.autoencoder import Autoencoder
from infd.presets import AUTOENCODER, DIFFUSION, from_file, require_known, tiny
from infd.training.plan import describe, flops_of, model_flops

PUBLISHED = {  # reference: supplement J.1, J.2 and the published configurations
    "ffhq_1024": {"crop.r_min": 256, "crop.r_max": 1024, "loop.steps": 1_000_000, "crop.late_from_step": None},
    "ffhq_6k_mix": {"crop.r_min": 256, "crop.r_max": 1024, "crop.balance_p": 0.5, "loop.steps": 1_000_000},
    "mountains_2k": {"crop.r_max": 2048, "crop.late_from_step": 600_001, "crop.p_max_late": 0.5, "loop.steps": 1_000_000},
    "laion_2k": {"crop.lowres_px": 512, "crop.late_from_step": 600_001, "freeze": ["encoder"], "model.quantizer": "kl"},
}
COMMON = {"optimizer.lr": 3.6e-5, "optimizer.betas": [0.5, 0.9], "loop.batch": 8, "loss.gan": 0.75, "loss.gan_from_step": 1,
          "crop.patch_px": 256, "crop.p_whole": 0.0, "crop.p_max": 0.0, "loss.l1": 1.0, "loss.lpips": 1.0}
PARAMETERS = {  # reference section 1.1, 1.5: encoder (with quant_conv), decoder (with post_quant_conv), renderer
    "ffhq_1024": (22_337_423, 32_957_068, 2_674_179), "laion_2k": (34_163_664, 49_486_484, 2_674_179)}


@pytest.mark.parametrize("name", PUBLISHED)
def test_golden_presets_have_the_published_figures(name):
    config = flat(AUTOENCODER[name]())
    assert {field: config[field] for field in PUBLISHED[name] | COMMON} == COMMON | PUBLISHED[name]


@pytest.mark.parametrize(("name", "steps"), [("ffhq_1024", 600_000), ("ffhq_6k_mix", 600_000), ("mountains_2k", 1_700_000)])
def test_golden_presets_of_the_denoiser_have_the_published_figures(name, steps):
    """Reference: supplement J.1, J.2 and the published configuration dm_ffhq."""
    wanted = {"loop.steps": steps, "loop.batch": 48, "optimizer.lr": 9.6e-5, "optimizer.ema_decay": 0.9999,
              "diffusion.objective": "eps", "diffusion.schedule": "linear", "diffusion.timesteps": 1000, "diffusion.scale": 1.0,
              "model.widths": [224, 448, 672, 896], "model.blocks": 2, "model.head_dim": 32, "model.condition": "none"}
    config = flat(DIFFUSION[name]())
    assert {field: config[field] for field in wanted} == wanted


@pytest.mark.parametrize("name", PARAMETERS)
def test_golden_parameters_of_each_part(name):
    with torch.device("meta"):
        model = Autoencoder(AUTOENCODER[name]().model)
    parts = ((model.encoder, model.quant_conv), (model.post_quant_conv, model.decoder), (model.renderer,))
    assert tuple(sum(p.numel() for part in group for p in part.parameters()) for group in parts) == PARAMETERS[name]


# ---------------------------------------------------------------- work


@pytest.mark.slow
def test_ref_a_renderer_of_one_pixel_takes_the_papers_multiply_adds():
    """2,670,336 a pixel forward (reference section 1.7); with the backward three times that, and it is most of a sample."""
    config = AUTOENCODER["ffhq_1024"]()
    with torch.device("meta"):
        renderer = Autoencoder(config.model).renderer
        forward = flops_of(lambda: renderer(torch.empty(1, 132, 256, 256)))
        features = torch.empty(1, 132, 256, 256, requires_grad=True)
        both = flops_of(lambda: renderer(features).sum().backward())
    assert forward == 2 * 2_670_336 * 256 ** 2 and both == 3 * forward
    assert both < model_flops(config)["autoencoder"] < 6 * both


@pytest.mark.slow
def test_law_frozen_parts_and_losses_that_are_off_need_no_work():
    config = AUTOENCODER["laion_2k"]()
    free = model_flops(replace(config, freeze=()))
    held = model_flops(config)
    assert held["autoencoder"] < free["autoencoder"] and held["LPIPS"] == free["LPIPS"]
    off = replace(tiny(), loss=replace(tiny().loss, lpips=0, gan=0))
    assert set(model_flops(off)) == {"autoencoder"}


def dataset(tmp_path):
    sources = [(f"{n}.png", encoded(picture(90, 80, n))) for n in range(12)]
    return write_dataset(sources, str(tmp_path / "ds"), IngestConfig(min_side_px=64, val_fraction=0.3, codec="png"))


@pytest.mark.slow
def test_plan_tells_epochs_and_bytes_of_a_dataset(tmp_path):
    made = dataset(tmp_path)
    manifest: Manifest = open_dataset(made.snapshot_uri).manifest
    config = tiny()
    order = Order(manifest, config.crop, batch=config.loop.batch, seed=config.loop.seed)
    text = describe(config, workers=2, manifest=manifest)
    assert f"{len(order.photo_rows)} of 12 photos train, an epoch is {order.epoch_steps} steps: " \
           f"{config.loop.steps / order.epoch_steps:,.1f} epochs" in text
    assert "holds them" in text and "TFLOP a sample (autoencoder " in text


# ---------------------------------------------------------------- files


def test_a_preset_of_ones_own_is_a_base_and_fields(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"base": "tiny", "crop.r_max": 777, "model.widths": [16, 32], "optimizer.lr": 1}))
    name, config = from_file(str(path), AUTOENCODER)
    assert name == "mine" and flat(config) == flat(tiny()) | {"crop.r_max": 777, "model.widths": [16, 32], "optimizer.lr": 1}


@pytest.mark.parametrize(("text", "message"), [
    ("{", "Expecting property name"),
    ("[]", "base=None: expected one of tiny"),
    ('{"base": "big"}', "base=big: expected one of"),
    ('{"base": "tiny", "loop.stepz": 1}', "loop.stepz: unknown"),
    ('{"base": "tiny", "loop.batch": "8"}', "loop.batch=8: expected int"),
    ('{"base": "tiny", "loop.batch": true}', "loop.batch=True: expected int"),
    ('{"base": "tiny", "crop.view": "left"}', "crop.view=left: expected center or random"),
    ('{"base": "tiny", "model.widths": [16, 1.5]}', "model.widths"),
    ('{"base": "tiny", "optimizer.betas": [0.5]}', "optimizer.betas"),
    ('{"base": "tiny", "crop.r_min": 20}', "crop.r_min=20: must be at least patch_px=48"),
])
def test_error_a_preset_that_is_not_right(tmp_path, text, message):
    path = tmp_path / "mine.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=f"{path}: .*{message}"):
        from_file(str(path), AUTOENCODER)


def test_error_a_misspelt_preset_is_named():
    with pytest.raises(ConfigError, match=r"tinny: no such preset; expected tiny, small, .*; did you mean tiny\?"):
        require_known(["tinny", "--dataset", "x"], AUTOENCODER)
    for words in ([], ["--help"], ["tiny"]):
        require_known(words, AUTOENCODER)
