"""Configs: one flat form, one identity, and refusal of what cannot work."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infd.config import (
    AutoencoderConfig,
    AutoencoderTrainingConfig,
    CropConfig,
    IngestConfig,
    LoopConfig,
    LossConfig,
    OptimizerConfig,
)
from infd.config_form import differing, flat, identity, unflat
from infd.errors import ConfigError
from infd.presets import AUTOENCODER, tiny


@pytest.mark.parametrize("preset", AUTOENCODER)
def test_law_flat_form_gives_the_config_back(preset):
    config = AUTOENCODER[preset]()
    assert unflat(AutoencoderTrainingConfig, flat(config)) == config
    assert list(flat(config)) == sorted(flat(config))


@given(st.floats(1e-6, 1), st.integers(1, 100))
def test_law_identity_tells_configs_apart(lr, steps):
    config = tiny()
    other = dataclasses.replace(config, optimizer=OptimizerConfig(lr=lr),
                                loop=dataclasses.replace(config.loop, steps=steps))
    assert (identity(other) == identity(config)) == (other == config)


def test_operational_fields_are_no_difference():
    config = tiny()
    longer = dataclasses.replace(config, loop=dataclasses.replace(config.loop, steps=9999, log_every=7))
    assert differing(config, longer) == []
    other = dataclasses.replace(config, loop=dataclasses.replace(config.loop, seed=1))
    assert differing(config, other) == ["loop.seed"]


@pytest.mark.parametrize(("make", "message"), [
    (lambda: CropConfig(patch_px=256, r_min=128), "crop.r_min=128: must be at least patch_px=256"),
    (lambda: CropConfig(p_max=1.5), r"crop.p_max=1.5: must lie in \[0, 1\]"),
    (lambda: AutoencoderConfig(norm_groups=24), "model.norm_groups=24: must divide every width; it does not divide 128"),
    (lambda: LossConfig(l1=0, lpips=0), "nothing to learn from"),
    (lambda: OptimizerConfig(decay_from_step=5), "goes with decay_from_step"),
    (lambda: LoopConfig(steps=1, batch=1, checkpoint_every=10, validate_every=15), "must be a multiple of checkpoint_every"),
    (lambda: IngestConfig(val_fraction=1.0), r"val_fraction=1.0: must lie in \[0, 1\)"),
    (lambda: dataclasses.replace(tiny(), crop=dataclasses.replace(tiny().crop, lowres_px=65)), "divisible by the encoder"),
])
def test_error_impossible_configs_name_field_value_and_rule(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_error_unknown_and_missing_fields_are_named():
    values = flat(tiny())
    with pytest.raises(ConfigError, match="loop.stepz: unknown"):
        unflat(AutoencoderTrainingConfig, {**values, "loop.stepz": 1})
    del values["loop.steps"]
    with pytest.raises(ConfigError, match="loop.steps: missing"):
        unflat(AutoencoderTrainingConfig, values)
