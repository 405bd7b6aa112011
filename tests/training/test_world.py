"""Several processes train as one. GroupNorm knows one sample; the discriminator's BatchNorm sees, on CPUs, a rank's share
of the batch, so equality with one process is tested with group norm there; equality between ranks holds always."""

import pytest
import torch
from two_ranks import REPORTED, run, two_ranks

from infd.training.world import World

STEPS = 50


@pytest.mark.slow
def test_law_two_ranks_agree_and_lose_what_one_process_loses(tmp_path):
    alone, (first, second) = run(World(), "group", STEPS), two_ranks(tmp_path, "group", STEPS)
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], rtol=0, atol=0, msg=name)
    reported = [name for name in first if name.startswith(REPORTED)]
    assert len(reported) == STEPS * len(REPORTED)
    errors = {name: float((first[name] - alone[name]).abs() / alone[name].abs()) for name in reported}
    assert max(errors.values()) <= 1e-5, sorted(errors.items(), key=lambda item: -item[1])[:9]


@pytest.mark.slow
def test_law_with_batch_norm_the_ranks_still_agree(tmp_path):
    first, second = two_ranks(tmp_path, "batch", 4)
    compared = [name for name in first if name.startswith(("train/gan_weight", "autoencoder."))]
    assert len(compared) > 4
    for name in compared:
        torch.testing.assert_close(first[name], second[name], rtol=0, atol=0, msg=name)
