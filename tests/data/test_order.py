"""Laws of the order: which crop of which photo is sample g."""

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from refs.order import epoch_walk

from infd.config import CropConfig
from infd.data.order import Order, Sample, draw_crop, slots_of, validation_samples
from infd.data.snapshot import Manifest, ShardEntry
from infd.errors import ConfigError, DatasetError

CROP = CropConfig(patch_px=16, lowres_px=16, r_min=16, r_max=64)
WORLDS = (1, 2, 3, 4, 6)
GOLDEN_ROWS = [[10, 8], [11, 5], [7, 6], [0, 3], [1, 9], [2, 4]]
GOLDEN_SAMPLE_5 = (5, 6, 0.662390808503082, 35, 5, 14, False)


def manifest_of(sizes: list[int], *, short_side: Any = 100, split: Any = 0) -> Manifest:
    """A manifest of shards with `sizes` photos; the other two may be numbers or one number a photo."""
    num_rows = sum(sizes)
    sides = np.broadcast_to(np.asarray(short_side, np.int32), num_rows)
    return Manifest(
        shards=[ShardEntry(sha256=f"{i:064x}", bytes=100, rows=size) for i, size in enumerate(sizes)],
        first_row=np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
        short_side=sides, long_side=sides, split=np.broadcast_to(np.asarray(split, np.uint8), num_rows),
        group=np.zeros(num_rows, np.int32), group_names=[""])


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    """Up to 12 shards of up to 9 photos, with a val split, of which at least one photo is for training."""
    sizes = draw(st.lists(st.integers(1, 9), min_size=1, max_size=12))
    split = draw(st.lists(st.sampled_from([0, 0, 0, 1]), min_size=sum(sizes), max_size=sum(sizes)))
    split[draw(st.integers(0, len(split) - 1))] = 0
    sides = draw(st.lists(st.integers(16, 100), min_size=sum(sizes), max_size=sum(sizes)))
    return manifest_of(sizes, short_side=sides, split=split)


def epoch_of_rows(order: Order, epoch: int) -> list[int]:
    steps = range(epoch * order.epoch_steps, (epoch + 1) * order.epoch_steps)
    return [sample.row for step in steps for sample in order.batch(step)]


# ---------------------------------------------------------------- balanced groups


def grouped(sizes: list[int], members: list[int]) -> Manifest:
    """A manifest whose rows `members` are of group lr, all others of hr."""
    base = manifest_of(sizes)
    return replace(base, group=np.isin(np.arange(sum(sizes)), members).astype(np.int32), group_names=["hr", "lr"])


@given(st.integers(1, 63), st.integers(1, 7), st.integers(0, 2**63), st.integers(0, 5))
def test_law_a_balanced_group_has_its_exact_share_of_every_block(share: int, batch: int, seed: int, block: int) -> None:
    crop = replace(CROP, balance_group="lr", balance_p=share / 64)
    order = Order(grouped([5, 9, 4], [3, 4, 11]), crop, batch=batch, seed=seed)
    rows = np.array([order.rows(step, range(batch)) for step in range(64 * block, 64 * (block + 1))])   # (64, B)
    assert np.isin(rows, [3, 4, 11]).sum(axis=0).tolist() == [share] * batch


@given(st.integers(0, 2**63), st.sampled_from(WORLDS), st.integers(0, 500))
def test_law_balanced_batches_do_not_depend_on_the_world_nor_on_the_start(seed: int, world: int, step: int) -> None:
    manifest, crop = grouped([5, 9, 4], [3, 4, 11]), replace(CROP, balance_group="lr", balance_p=0.3)
    whole = Order(manifest, crop, batch=12, seed=seed)
    whole.batch(step + 64)
    parts = [Order(manifest, crop, batch=12, seed=seed).batch(step, slots_of(rank=rank, world=world, batch=12))
             for rank in range(world)]
    assert [sample for part in parts for sample in part] == whole.batch(step)


def test_law_each_balanced_part_is_walked_whole() -> None:
    members = list(range(0, 24, 2))
    order = Order(grouped([8, 8, 8], members), replace(CROP, balance_group="lr", balance_p=0.5), batch=1, seed=5)
    rows = [int(order.rows(step, range(1))[0]) for step in range(64)]
    for part in (members, [row for row in range(24) if row not in members]):
        seen = [row for row in rows if row in part]
        assert len(seen) == 32
        assert sorted(seen[:12]) == part and sorted(seen[12:24]) == part


def test_error_a_balance_needs_two_parts() -> None:
    with pytest.raises(ConfigError, match=r"balance_group=xx: the dataset has the groups \['hr', 'lr'\]"):
        Order(grouped([4], [1]), replace(CROP, balance_group="xx"), batch=2, seed=0)
    with pytest.raises(ConfigError, match="4 of 4 photos are of that group"):
        Order(grouped([4], [0, 1, 2, 3]), replace(CROP, balance_group="lr"), batch=2, seed=0)


# ---------------------------------------------------------------- the walk


@given(manifests(), st.integers(1, 14), st.integers(0, 2**63), st.integers(0, 3))
def test_ref_walk_equals_lists_and_loops(manifest: Manifest, batch: int, seed: int, epoch: int) -> None:
    order = Order(manifest, CROP, batch=batch, seed=seed)
    shards = [[row for row in range(first, last) if manifest.split[row] == 0]
              for first, last in zip(manifest.first_row, manifest.first_row[1:], strict=False)]
    slots = epoch_walk(shards, batch=batch, seed=seed, epoch=epoch)
    for at in range(order.epoch_steps):
        step = epoch * order.epoch_steps + at
        assert [sample.row for sample in order.batch(step)] == [rows[at] for rows in slots]


@given(manifests(), st.integers(1, 14), st.integers(0, 2**63), st.integers(0, 3))
def test_law_epoch_holds_every_train_row_once_but_for_the_remainder(
    manifest: Manifest, batch: int, seed: int, epoch: int
) -> None:
    order = Order(manifest, CROP, batch=batch, seed=seed)
    train = np.flatnonzero(manifest.split == 0)
    seen = Counter(epoch_of_rows(order, epoch))
    assert sorted(seen) == train.tolist()
    if len(train) >= batch:
        again = sum(seen.values()) - len(train)
        assert 0 <= again <= batch - 1
        assert max(seen.values()) <= 2
    else:
        assert order.epoch_steps == 1
        assert {batch // len(train), -(-batch // len(train))} >= set(seen.values())


@pytest.mark.parametrize(("photos", "batch"), [(25, 4), (3, 8), (1, 1), (1, 6), (8, 8)])
def test_law_small_datasets_fill_every_batch(photos: int, batch: int) -> None:
    order = Order(manifest_of([photos]), CROP, batch=batch, seed=0)
    for step in range(3 * order.epoch_steps):
        assert [sample.g for sample in order.batch(step)] == list(range(step * batch, (step + 1) * batch))
    for epoch in range(3):
        assert set(epoch_of_rows(order, epoch)) == set(range(photos))


def test_law_photos_seen_twice_differ_between_epochs() -> None:
    order = Order(manifest_of([25]), CROP, batch=4, seed=0)
    twice = [tuple(row for row, n in Counter(epoch_of_rows(order, epoch)).items() if n == 2) for epoch in range(20)]
    assert all(len(rows) == 3 for rows in twice)
    assert len({row for rows in twice for row in rows}) > 15


@given(manifests(), st.sampled_from([12, 24]), st.integers(0, 2**32), st.integers(0, 50))
def test_law_batches_do_not_depend_on_the_world(manifest: Manifest, batch: int, seed: int, step: int) -> None:
    crop = replace(CROP, p_whole=0.2, p_max=0.3, view="random")
    whole = Order(manifest, crop, batch=batch, seed=seed).batch(step)
    for world in WORLDS:
        parts: list[Sample] = []
        for rank in range(world):
            parts += Order(manifest, crop, batch=batch, seed=seed).batch(
                step, slots_of(rank=rank, world=world, batch=batch))
        assert parts == whole


@given(manifests(), st.integers(1, 8), st.lists(st.integers(0, 200), min_size=1, max_size=20))
def test_law_sample_does_not_depend_on_what_was_asked_before(manifest: Manifest, batch: int, asked: list[int]) -> None:
    walked = Order(manifest, CROP, batch=batch, seed=3)
    jumped = Order(manifest, CROP, batch=batch, seed=3)
    in_order = {g: walked.sample(g) for g in range(max(asked) + 1)}
    assert [jumped.sample(g) for g in asked] == [in_order[g] for g in asked]


def test_law_seed_and_epoch_change_the_walk() -> None:
    manifest = manifest_of([5] * 20)
    one, two = (Order(manifest, CROP, batch=4, seed=seed) for seed in (0, 1))
    assert epoch_of_rows(one, 0) != epoch_of_rows(two, 0)
    assert epoch_of_rows(one, 0) != epoch_of_rows(one, 1)
    assert epoch_of_rows(one, 0) == epoch_of_rows(Order(manifest, CROP, batch=4, seed=0), 0)


def test_law_few_walks_are_held() -> None:
    order = Order(manifest_of([30]), CROP, batch=2, seed=0)
    for epoch in range(10):
        epoch_of_rows(order, epoch)
    assert sorted(order.walks[0]._epochs) == [7, 8, 9]


@pytest.mark.parametrize("world", WORLDS)
def test_law_a_rank_reads_its_part_of_the_shards(world: int) -> None:
    num_shards, batch = 120, 24
    order = Order(manifest_of([10] * num_shards), CROP, batch=batch, seed=7)
    for epoch in range(2):
        touched = []
        for rank in range(world):
            slots = slots_of(rank=rank, world=world, batch=batch)
            steps = range(epoch * order.epoch_steps, (epoch + 1) * order.epoch_steps)
            touched.append({shard for step in steps for shard in order.shards(step, slots)})
        assert set().union(*touched) == set(range(num_shards))
        assert max(map(len, touched)) <= num_shards / world + 2
        assert sum(map(len, touched)) <= num_shards + 2 * world


def test_law_a_slot_holds_few_shards_open_and_mixes_them() -> None:
    order = Order(manifest_of([50] * 40), CROP, batch=2, seed=1)
    shards = [order.shards(step, range(1))[0] for step in range(order.epoch_steps)]
    for start in range(0, 1000, 200):  # windows of 4 shards of 50 photos
        window = shards[start : start + 200]
        assert len(set(window)) == 4
        assert sum(a != b for a, b in zip(window, window[1:], strict=False)) > 100  # 150 are expected of a shuffle


# ---------------------------------------------------------------- the crop


@given(manifests(), st.integers(0, 1000), st.floats(0, 1), st.floats(0, 1), st.sampled_from(["center", "random"]))
def test_law_every_crop_lies_in_its_photo(manifest: Manifest, g: int, p_whole: float, p_max: float, view: Any) -> None:
    crop = replace(CROP, p_whole=p_whole, p_max=p_max, view=view)
    s = Order(manifest, crop, batch=5, seed=2).sample(g)
    assert s.g == g
    assert manifest.split[s.row] == 0
    assert crop.r_min <= s.r <= min(manifest.short_side[s.row], crop.r_max)
    assert 0 <= s.y <= s.r - crop.patch_px
    assert 0 <= s.x <= s.r - crop.patch_px
    assert s.view_offset == 0.5 if view == "center" else 0 <= s.view_offset < 1


def draws(crop: CropConfig, count: int, *, short_side: int = 100, step: int = 0) -> list[Sample]:
    return [draw_crop(crop, g=g, row=0, short_side=short_side, step=step, seed=11) for g in range(count)]


def assert_uniform(values: list[int], low: int, high: int) -> None:
    """Chi-square of the integers low … high, both included: within 4.5 standard deviations of its mean."""
    counts = np.bincount(np.asarray(values) - low, minlength=high - low + 1)
    assert len(counts) == high - low + 1  # nothing above high
    expected = len(values) / len(counts)
    chi2 = float(((counts - expected) ** 2 / expected).sum())
    degrees = len(counts) - 1
    assert abs(chi2 - degrees) < 4.5 * np.sqrt(2 * degrees)


@pytest.mark.slow
@pytest.mark.parametrize(("short_side", "high"), [(100, 64), (40, 40), (64, 64)])
def test_law_r_is_uniform_on_integers_both_ends_included(short_side: int, high: int) -> None:
    assert_uniform([s.r for s in draws(CROP, 20_000, short_side=short_side)], 16, high)


def test_law_corner_and_view_are_uniform_and_independent() -> None:
    samples = draws(replace(CROP, r_min=25, r_max=25, view="random"), 20_000)
    assert_uniform([s.y for s in samples], 0, 9)
    assert_uniform([s.x for s in samples], 0, 9)
    assert_uniform([10 * s.y + s.x for s in samples], 0, 99)
    assert_uniform([int(s.view_offset * 20) for s in samples], 0, 19)
    assert_uniform([10 * s.y + int(s.view_offset * 10) for s in samples], 0, 99)


def test_law_r_of_a_photo_smaller_by_one_than_the_bound_is_its_side() -> None:
    assert {s.r for s in draws(replace(CROP, r_min=63, r_max=64), 100, short_side=63)} == {63}


def assert_share(samples: list[Sample], r: int, share: float) -> None:
    """The share of samples with this r, within 4.5 standard deviations."""
    found = sum(s.r == r for s in samples) / len(samples)
    assert abs(found - share) <= 4.5 * np.sqrt(share * (1 - share) / len(samples))


def test_law_p_whole_and_p_max() -> None:
    crop = replace(CROP, p_whole=0.3, p_max=0.5)
    samples = draws(crop, 20_000, short_side=50)
    uniform = 0.7 * 0.5 / (50 - 16 + 1)
    assert_share(samples, 16, 0.3 + uniform)
    assert_share(samples, 50, 0.7 * 0.5 + uniform)
    assert_uniform([s.r for s in samples if s.r not in (16, 50)], 17, 49)
    assert {s.r for s in draws(replace(CROP, p_whole=1.0, p_max=1.0), 50)} == {16}
    assert {s.r for s in draws(replace(CROP, p_max=1.0), 50)} == {64}


def test_law_p_whole_is_the_patch_side_where_r_min_is_larger() -> None:
    assert {s.r for s in draws(replace(CROP, r_min=32, p_whole=1.0), 50)} == {16}


def test_law_the_late_phase_begins_at_its_step() -> None:
    crop = replace(CROP, p_max=0.0, p_max_late=1.0, late_from_step=8, r_max=10_000)
    order = Order(manifest_of([40], short_side=10_000), crop, batch=4, seed=0)
    assert all(s.r < 10_000 for step in range(7) for s in order.batch(step))
    assert all(s.r == 10_000 for step in range(7, 20) for s in order.batch(step))
    never = Order(manifest_of([40], short_side=10_000), replace(crop, late_from_step=21), batch=4, seed=0)
    assert all(s.r < 10_000 for step in range(20) for s in never.batch(step))


def test_law_the_late_phase_leaves_rows_and_corners_of_other_steps_alone() -> None:
    manifest = manifest_of([40])
    early = Order(manifest, CROP, batch=4, seed=0)
    late = Order(manifest, replace(CROP, p_max_late=0.5, late_from_step=6), batch=4, seed=0)
    assert [early.batch(step) for step in range(5)] == [late.batch(step) for step in range(5)]
    assert [s.row for s in early.batch(9)] == [s.row for s in late.batch(9)]


@given(manifests(), st.integers(0, 2**63), st.integers(0, 300))
def test_law_flips_leave_everything_else_alone(manifest: Manifest, seed: int, g: int) -> None:
    crop = replace(CROP, p_whole=0.2, p_max=0.2, view="random")
    plain = Order(manifest, crop, batch=5, seed=seed).sample(g)
    assert plain.flip is False
    assert Order(manifest, replace(crop, flip=True), batch=5, seed=seed).sample(g)._replace(flip=False) == plain


def test_law_half_of_the_views_are_flipped_whatever_the_crop() -> None:
    samples = draws(replace(CROP, r_min=25, r_max=25, flip=True), 20_000)
    assert abs(sum(s.flip for s in samples) / 20_000 - 0.5) < 4.5 * 0.5 / np.sqrt(20_000)
    assert_uniform([2 * s.x + s.flip for s in samples], 0, 19)
    assert not any(s.flip for s in validation_samples(manifest_of([9], split=1), replace(CROP, flip=True), 50, 0))


def test_golden_first_samples_never_change() -> None:
    """The order is part of a run's identity: a change here makes old checkpoints resume on other samples."""
    order = Order(manifest_of([3, 4, 5]), replace(CROP, view="random"), batch=2, seed=1234)
    rows = [[s.row for s in order.batch(step)] for step in range(6)]
    assert rows == GOLDEN_ROWS
    assert order.sample(5) == GOLDEN_SAMPLE_5


# ---------------------------------------------------------------- validation


@given(manifests(), st.integers(0, 30), st.integers(0, 100))
def test_law_validation_cycles_the_val_photos(manifest: Manifest, count: int, seed: int) -> None:
    samples = validation_samples(manifest, replace(CROP, p_whole=1.0), count, seed)
    val = np.flatnonzero(manifest.split == 1).tolist()
    if not val:
        assert samples == []
        return
    assert len(samples) == count
    assert samples == validation_samples(manifest, replace(CROP, p_max=1.0), count + 5, seed)[:count]
    seen = Counter(s.row for s in samples)
    assert set(seen) <= set(val)
    assert max(seen.values(), default=0) - min((seen[row] for row in val), default=0) <= 1
    for s in samples:
        assert 16 <= s.r <= min(manifest.short_side[s.row], 64)
        assert max(s.y, s.x) <= s.r - 16


@settings(max_examples=5)
@given(st.integers(0, 100))
def test_law_validation_r_is_uniform(seed: int) -> None:
    samples = validation_samples(manifest_of([7], split=1), replace(CROP, p_whole=0.9, p_max=0.9), 5000, seed)
    assert_uniform([s.r for s in samples], 16, 64)


def test_law_few_validation_samples_read_few_shards() -> None:
    samples = validation_samples(manifest_of([10] * 50, split=1), CROP, 30, 0)
    assert len({s.row // 10 for s in samples}) == 3


# ---------------------------------------------------------------- errors


def test_error_small_photos_are_counted() -> None:
    manifest = manifest_of([3, 2], short_side=[100, 15, 100, 14, 12], split=[0, 0, 0, 0, 1])
    with pytest.raises(ConfigError, match=r"crop\.r_min=16: 2 of 4 train photos .* smallest 14 \(row 3\)"):
        Order(manifest, CROP, batch=2, seed=0)
    with pytest.raises(ConfigError, match=r"1 of 1 val photos"):
        validation_samples(manifest, CROP, 3, 0)


def test_error_photos_smaller_than_lowres_are_counted() -> None:
    with pytest.raises(ConfigError, match=r"crop\.lowres_px=32: 1 of 2 train photos .* smallest 31 \(row 1\)"):
        Order(manifest_of([2], short_side=[32, 31]), replace(CROP, lowres_px=32), batch=2, seed=0)


def test_error_no_photos_in_the_split() -> None:
    with pytest.raises(DatasetError, match="4 photos, none in split train"):
        Order(manifest_of([4], split=1), CROP, batch=2, seed=0)


def test_error_batch_not_divisible_by_workers() -> None:
    with pytest.raises(ConfigError, match=r"loop\.batch=8: must be divisible by the number of workers, 3"):
        slots_of(rank=0, world=3, batch=8)
