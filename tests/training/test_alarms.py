"""Alarms: each check on rows that are as they should be and as they should not, and the watch that says each once."""

import dataclasses

import numpy as np
import pytest
from training_batches import small

from infd.config import AutoencoderTrainingConfig, LossConfig
from infd.training.alarms import DEAD, ROWS, Watch, codebook_dies, discriminator_wins, even_use, gradient_jumps

LEVEL = {"train/loss": 0.3, "train/grad_norm_max": 1.0, "train/gan": 0.2, "train/gan_weight": 0.05, "train/disc_loss": 0.6}


def rows(**changes: float | list[float]) -> list[dict[str, float]]:
    """ROWS rows of an untroubled run, in which some metrics are other numbers, or lists of ROWS."""
    told = {f"train/{name}": value for name, value in changes.items()}
    return [LEVEL | {name: value[i] if isinstance(value, list) else value for name, value in told.items()}
            for i in range(ROWS)]


def ramp(first: float, last: float) -> list[float]:
    return [float(value) for value in np.linspace(first, last, ROWS)]


def quantized(quantizer: str, **model: object) -> AutoencoderTrainingConfig:
    config = small()
    return dataclasses.replace(config, model=dataclasses.replace(config.model, quantizer=quantizer, **model))  # pyright: ignore


def test_a_discriminator_that_is_often_right_has_not_won():
    """The demo's run: the generator's loss rises and its weight collapses right after the GAN begins, as it should."""
    demo = rows(disc_accuracy=0.85, gan=ramp(0.17, 0.64), gan_weight=ramp(0.09, 0.006), disc_loss=ramp(0.98, 0.6))
    assert discriminator_wins(demo, small()) is None
    assert discriminator_wins(rows(disc_accuracy=0.99), small()) is None


@pytest.mark.parametrize(("changes", "sign"), [
    ({"gan": ramp(0.2, 2.0)}, "the generator's loss rose from"),
    ({"gan_weight": ramp(0.05, 0.001)}, "the adaptive weight fell from"),
    ({"disc_loss": 0.02}, "its own loss is 0.02"),
])
def test_error_the_discriminator_wins(changes, sign):
    text = discriminator_wins(rows(disc_accuracy=0.99, **changes), small())
    assert text is not None and text.startswith("the discriminator wins: it tells 99.0% of patches") and sign in text
    assert "expected below 90%" in text and "less --loss.gan," in text


def test_the_adaptive_weight_is_no_sign_where_it_is_off_and_log_2_is_the_relativistic_unit():
    fixed = dataclasses.replace(small(), loss=LossConfig(lpips=0, adaptive_gan_weight=False))
    assert discriminator_wins(rows(disc_accuracy=0.99, gan_weight=ramp(0.05, 0.001)), fixed) is None
    paired = dataclasses.replace(small(), loss=LossConfig(lpips=0, gan_loss="relativistic"))
    nearly = rows(disc_accuracy=0.99, disc_loss=0.08)
    assert discriminator_wins(nearly, small()) is not None and discriminator_wins(nearly, paired) is None


def test_law_a_level_noisy_loss_hardly_ever_rises():
    """At most 3 of 1,000 spans of noise; simulated with many more it is 0.6."""
    noise = np.random.default_rng(0).normal(1, 0.3, (1000, ROWS))
    assert sum(discriminator_wins(rows(disc_accuracy=0.99, gan=span.tolist()), small()) is not None for span in noise) <= 3


def test_error_the_codebook_dies():
    config = quantized("vq", z_dim=3, codebook_size=512)
    alive, dead = (rows(codebook_use=use, codebook_perplexity=512 * use / 2) for use in (0.5, 0.02))
    assert codebook_dies(alive, config, workers=1) is None
    text = codebook_dies(dead, config, workers=1)
    assert text is not None and text.startswith("the codebook dies: a batch holds 2.00% of its 512 codes, perplexity 5.12; ")
    assert "--model.quantizer fsq" in text
    text = codebook_dies(dead, quantized("fsq", fsq_levels=(8, 5, 5, 5)), workers=1)
    assert text is not None and "fewer --model.fsq-levels" in text and "of its 1000 codes" in text


def test_law_a_small_batch_is_no_dead_codebook():
    """Codes of a huge codebook drawn evenly, for as many places as one worker's micro-batch has."""
    config = quantized("vq", z_dim=3, codebook_size=200_000)
    places = config.loop.batch // 2 * (config.crop.lowres_px // config.model.factor) ** 2
    drawn = np.random.default_rng(0).integers(0, 200_000, places)
    use = len(np.unique(drawn)) / 200_000
    assert use < DEAD and even_use(config, workers=2) == pytest.approx(use, rel=0.02)
    assert codebook_dies(rows(codebook_use=use, codebook_perplexity=2000.0), config, workers=2) is None


def test_error_the_gradient_jumps():
    assert gradient_jumps(rows(grad_norm_max=[1.0, 3.0] * (ROWS // 2)), small()) is None
    text = gradient_jumps(rows(grad_norm_max=[1.0] * (ROWS - 1) + [25.0]), small())
    assert text is not None and text.startswith("the gradient jumps: its norm is 25, 1 before; ") and "clip-norm" in text


# ---------------------------------------------------------------- the watch


def watch(steps: int = 2000) -> Watch:
    config = quantized("vq", z_dim=3, codebook_size=512)
    loop = dataclasses.replace(config.loop, steps=steps, log_every=10)
    return Watch.of_autoencoder(dataclasses.replace(config, loop=loop), workers=1)


def told(seen: Watch, use: dict[range, float]) -> list[tuple[int, bool]]:
    """(step, whether it is over) of all that the watch says when a row comes every 10 steps with these uses."""
    return [(step, alarm.over) for steps, value in use.items() for step in steps
            for alarm in seen.look(step, LEVEL | {"train/codebook_use": value, "train/codebook_perplexity": 4.0})]


def test_law_an_alarm_is_told_once_while_it_lasts():
    """The span is 100 steps: told when it is full, over after a whole span of better rows, told again when it comes again."""
    dead, well = 0.01, 0.9
    seen = told(watch(), {range(10, 510, 10): dead, range(510, 810, 10): well, range(810, 1510, 10): dead})
    assert [over for _, over in seen] == [False, True, False]
    assert seen[0][0] == 100 and 600 < seen[1][0] < 700 and seen[2][0] > 810


def test_law_an_alarm_that_flickers_is_told_once():
    uses = {range(step, step + 10, 10): 0.01 if step % 40 else 0.2 for step in range(10, 2000, 10)}
    assert [over for _, over in told(watch(), uses)] == [False]


def test_a_long_run_has_a_percent_of_its_steps_to_wake_its_codes():
    assert told(watch(1_000_000), {range(10, 9000, 10): 0.01}) == []
    assert told(watch(1_000_000), {range(10, 10_010, 10): 0.01}) == [(10_000, False)]


def test_rows_of_validation_and_rows_before_the_gan_are_no_rows():
    seen = watch()
    for step in range(10, 200, 10):
        assert seen.look(step, {"val/loss": 1.0}) == []
    won = {"train/disc_accuracy": 1.0, "train/disc_loss": 0.0}
    steps = [step for step in range(200, 600, 10) for _ in seen.look(step, LEVEL | (won if step >= 300 else {}))]
    assert steps == [390]
