"""Power spectra: by the sum itself, noise, waves, streaming."""

import functools
import operator

import numpy as np
import pytest
from evaluation.degraded import DEGRADATIONS, blurred, noisy
from pictures import picture
from refs import metrics

from infd.evaluation.errors import EvaluationError
from infd.evaluation.spectra import Spectrum, distance_db, radial, windowed


@pytest.mark.parametrize("side", [8, 9])
def test_ref_rings_by_the_sum_itself(side):
    plane = np.random.default_rng(0).normal(size=(side, side))
    np.testing.assert_allclose(radial(plane), metrics.radial_power(plane), rtol=1e-9)


def test_law_white_noise_is_flat_at_its_variance():
    rng = np.random.default_rng(1)
    found = np.mean([radial(windowed(rng.normal(0, 0.3, (64, 64)))) for _ in range(60)], axis=0)
    np.testing.assert_allclose(found[2:], 0.09, rtol=0.15)
    assert found[2:].mean() == pytest.approx(0.09, rel=0.02)


@pytest.mark.parametrize("cycles", [4, 11, 20])
def test_law_a_wave_stands_at_its_frequency(cycles):
    x = np.arange(64)
    image = np.repeat((127 + 90 * np.sin(2 * np.pi * cycles * x / 64))[None, :, None], 3, axis=2).repeat(64, axis=0)
    power = Spectrum.of(image.round().astype(np.uint8)).power
    assert power.argmax() == cycles
    near = np.arange(33)[(np.abs(np.arange(33) - cycles) > 3) & (np.arange(33) > 0)]
    assert power[near].max() < 1e-3 * power[cycles]


def test_law_pieces_add_up_to_the_whole():
    images = [np.asarray(picture(32, 32, seed)) for seed in range(5)]
    one = [Spectrum.of(image) for image in images]
    chain = sum(one, Spectrum.empty(32))
    parts = (one[3] + one[0]) + (one[4] + (one[1] + one[2]))
    assert chain.count == parts.count == 5
    np.testing.assert_allclose(chain.power, parts.power, rtol=1e-12)
    np.testing.assert_allclose(chain.power, np.mean([Spectrum.of(image).power for image in images], axis=0), rtol=1e-12)


def test_law_blur_takes_the_high_end_away_and_noise_adds_to_it():
    image = np.asarray(picture(64, 64))
    plain = Spectrum.of(image)
    assert (Spectrum.of(blurred(image, 3)).power[20:] < plain.power[20:]).all()
    assert Spectrum.of(noisy(image, 3)).power[20:].mean() > plain.power[20:].mean()
    for worse in (blurred, noisy):
        found = [distance_db(plain, Spectrum.of(worse(image, level))) for level in (1, 2, 3)]
        assert 0 < found[0] < found[1] < found[2]
    assert distance_db(plain, plain) == 0


@pytest.mark.parametrize("kind", DEGRADATIONS)
def test_law_the_more_images_are_bad_the_further_the_spectrum(kind):
    images = [np.asarray(picture(64, 64, seed)) for seed in range(8)]
    worse = [DEGRADATIONS[kind](image, 3) for image in images]
    plain = total(images)
    found = [distance_db(plain, total(worse[:bad] + images[bad:])) for bad in (0, 2, 4, 6, 8)]
    assert found[0] == 0 and found == sorted(found) and len(set(found)) == 5


def total(images: list[np.ndarray]) -> Spectrum:
    """The spectrum of a set."""
    return functools.reduce(operator.add, map(Spectrum.of, images))


def test_law_a_flat_image_has_no_power_and_a_finite_distance():
    flat = Spectrum.of(np.full((32, 32, 3), 90, np.uint8))
    assert flat.power.max() < 1e-20
    assert np.isfinite(distance_db(flat, Spectrum.of(np.asarray(picture(32, 32)))))


def test_error_not_square():
    with pytest.raises(EvaluationError, match="image of 40x32: a spectrum needs a square"):
        Spectrum.of(np.asarray(picture(40, 32)))
    with pytest.raises(ValueError, match="sides 8 and 9"):
        Spectrum.empty(8) + Spectrum.empty(9)
