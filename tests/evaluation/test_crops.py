"""Crop plans: fixed, uniform, the same on both sides; rules that name the file."""

import numpy as np
import pytest
from evaluation.folders import folder, opened
from hypothesis import given
from hypothesis import strategies as st

from infd.errors import ConfigError
from infd.evaluation.crops import Cut, OneCrop, RandomScales, WholeImages, one_crop, pixels, plan, random_cut, shuffled
from infd.evaluation.errors import EvaluationError
from infd.evaluation.sources import FolderSource, Sides

GOLDEN_ONE = [(636, 209), (341, 94), (448, 626)]
GOLDEN_SCALES = [(7, 2472, 823, 1948, 512, 0.5623412313378157, False, 18, 203, 299),
                 (7, 1129, 7, 360, 512, 0.22811566900442792, False, 89, 167, 299)]
GOLDEN_ORDER = [4, 0, 1, 3, 2, 4, 2, 0, 1, 3, 0, 1]


class Listed:
    """A source of sides alone."""

    def __init__(self, *sides: tuple[int, int], uri: str = "set"):
        self.uri, self.all = uri, [Sides(*one) for one in sides]

    def __len__(self):
        return len(self.all)

    def sides(self, index):
        return self.all[index]

    def address(self, index):
        return f"{self.uri}/{index}.png"


def test_golden_the_plan_never_changes():
    # Figures depend on these numbers: a change of them is a change of every pFID.
    crops = OneCrop(p=256, r=1024)
    assert [one_crop(crops, item, seed=0)[2:4] for item in (0, 1, 49_999)] == GOLDEN_ONE
    scales = RandomScales(p=512, r_min=512, view="random", flip=True)
    assert [tuple(random_cut(scales, 7, 3000, index=index, seed=1)) for index in (0, 1)] == GOLDEN_SCALES
    assert shuffled(5, 12, seed=0) == GOLDEN_ORDER


@given(p=st.integers(16, 300), extra=st.integers(0, 300), seed=st.integers(0, 2**40), item=st.integers(0, 10**6))
def test_law_a_crop_lies_inside_and_depends_on_seed_and_item_alone(p, extra, seed, item):
    crops = OneCrop(p=p, r=p + extra)
    cut = one_crop(crops, item, seed=seed)
    assert 0 <= cut.y <= extra and 0 <= cut.x <= extra and cut.p == p and cut.side == p + extra
    assert cut == one_crop(crops, item, seed=seed)


def test_law_corners_are_uniform_and_rows_independent_of_columns():
    crops = OneCrop(p=16, r=19)
    table = np.zeros((4, 4))
    for item in range(8000):
        cut = one_crop(crops, item, seed=3)
        table[cut.y, cut.x] += 1
    np.testing.assert_allclose(table, 500, atol=5 * np.sqrt(500))


def test_law_p_equal_to_r_is_the_whole_image_and_seeds_differ():
    whole = OneCrop(p=64, r=64)
    assert all(one_crop(whole, item, seed=item)[2:4] == (0, 0) for item in range(20))
    crops = OneCrop(p=64, r=128)
    assert [one_crop(crops, item, seed=0) for item in range(9)] != [one_crop(crops, item, seed=1) for item in range(9)]


def test_law_both_sides_have_the_same_crops_and_counts_take_the_first():
    a, b = Listed(*[(64, 64)] * 9), Listed(*[(64, 64)] * 6)
    found = plan(OneCrop(p=32, r=64), a, b, seed=5, count_a=7)
    assert len(found.a) == 7 and len(found.b) == 6 and found.a[:6] == found.b
    assert plan(OneCrop(p=32, r=64), a, a, seed=5).a[:7] == found.a


@given(short=st.integers(64, 5000), index=st.integers(0, 10**6), r_max=st.sampled_from([0, 64, 100, 2000]),
       p=st.integers(16, 64))
def test_law_random_scales_lie_within_the_image_and_the_range(short, index, r_max, p):
    cut = random_cut(RandomScales(p=p, r_min=64, r_max=r_max), 0, short, index=index, seed=0)
    assert 64 <= cut.side <= (min(short, r_max) if r_max else short)
    assert 0 <= cut.y <= cut.side - p and 0 <= cut.x <= cut.side - p and cut.sub_p == 0


def test_law_scales_are_uniform_in_pixels():
    crops = RandomScales(p=64, r_min=64, r_max=1064)
    sides = np.array([random_cut(crops, 0, 9999, index=index, seed=2).side for index in range(4000)])
    assert sides.min() < 70 and sides.max() > 1058
    assert sides.mean() == pytest.approx(564, abs=5 * 1000 / np.sqrt(12 * 4000))
    np.testing.assert_allclose(np.histogram(sides, bins=5, range=(64, 1064))[0], 800, atol=5 * np.sqrt(800))


def test_law_both_sides_have_the_same_scales_and_places():
    a, b = Listed(*[(200 + 10 * index, 300) for index in range(5)]), Listed(*[(400, 400)] * 30)
    found = plan(RandomScales(p=64, r_min=64, count=20, flip=True), a, b, seed=1)
    assert [cut._replace(item=0, flip=False) for cut in found.a] == [cut._replace(item=0) for cut in found.b]
    assert sorted(np.bincount([cut.item for cut in found.a])) == [4] * 5
    assert len({cut.item for cut in found.b}) == 20
    assert 3 < sum(cut.flip for cut in found.a) < 17
    # Equal sources of as many images as patches: the very same cuts.
    same = plan(RandomScales(p=64, r_min=64, count=5), a, a, seed=1)
    assert same.a == same.b


def test_law_patches_above_299_are_cut_to_it():
    crops = RandomScales(p=512, r_min=512)
    cuts = [random_cut(crops, 0, 2000, index=index, seed=0) for index in range(300)]
    assert all(cut.sub_p == 299 and 0 <= cut.sub_y <= 213 and 0 <= cut.sub_x <= 213 for cut in cuts)
    assert max(cut.sub_y for cut in cuts) > 200 and min(cut.sub_x for cut in cuts) < 13


@given(st.integers(1, 20), st.integers(1, 70), st.integers(0, 99))
def test_law_every_epoch_shows_each_item_once(size, count, seed):
    items = shuffled(size, count, seed=seed)
    assert len(items) == count
    for start in range(0, count - size + 1, size):
        assert sorted(items[start:start + size]) == list(range(size))


# ---------------------------------------------------------------- pixels


def test_law_pixels_of_a_cut(tmp_path):
    source = FolderSource(str(folder(tmp_path, [(50, 50)])))
    image = opened(tmp_path / "img000.png")
    np.testing.assert_array_equal(pixels(source, Cut(0)), image)
    np.testing.assert_array_equal(pixels(source, Cut(0, 50, 3, 4, 20)), image[3:23, 4:24])
    np.testing.assert_array_equal(pixels(source, Cut(0, 50, 3, 4, 20, flip=True)), image[:, ::-1][3:23, 4:24])
    np.testing.assert_array_equal(pixels(source, Cut(0, 50, 3, 4, 20, sub_y=2, sub_x=5, sub_p=8)), image[5:13, 9:17])
    np.testing.assert_array_equal(pixels(source, Cut(0, 32, p=32)), source.patch(0, side=32, y=0, x=0, p=32))


# ---------------------------------------------------------------- rules


def test_error_mixed_sizes_where_images_are_taken_as_they_are():
    a, b = Listed((64, 48), (64, 48), uri="real"), Listed((64, 48), (48, 64), uri="fake")
    with pytest.raises(EvaluationError, match=r"fake/1\.png: 48x64; whole images must have one size, and real/0\.png is 64x48; "
                                              "set crops.side"):
        plan(WholeImages(), a, b)
    assert plan(WholeImages(side=48), a, b).b[1] == Cut(1, 48, p=48)
    with pytest.raises(EvaluationError, match=r"real/0\.png: 64x48; side 49 was asked for and nothing is enlarged"):
        plan(WholeImages(side=49), a, b)


def test_error_sizes_of_one_crop():
    a, b = Listed(*[(128, 128)] * 3, uri="real"), Listed((128, 128), (130, 128), (60, 128), uri="fake")
    with pytest.raises(EvaluationError, match=r"fake/1\.png: 130x128; crops.prepare=exact needs 128x128; set crops.prepare"):
        plan(OneCrop(p=64, r=128), a, b)
    with pytest.raises(EvaluationError, match=r"fake/2\.png: 60x128; smaller than the crop of 64 px"):
        plan(OneCrop(p=64, r=128, prepare="center-lanczos"), a, b)
    with pytest.raises(EvaluationError, match=r"fake/2\.png: 60x128; side 100 was asked for"):
        plan(OneCrop(p=32, r=100, prepare="center-lanczos"), a, b)


def test_error_counts():
    a, b = Listed(*[(64, 64)] * 4, uri="real"), Listed(*[(64, 64)] * 3, uri="fake")
    with pytest.raises(EvaluationError, match="fake: 3 images; the count that was asked for needs at least 5"):
        plan(OneCrop(p=32, r=64), a, b, count_b=5)
    with pytest.raises(EvaluationError, match="fake: 3 images; one image a patch, crops.count=4, needs at least 4"):
        plan(RandomScales(p=32, r_min=32, count=4), a, b)


def test_error_sizes_of_random_scales():
    with pytest.raises(EvaluationError, match=r"set/\d\.png: 90x64; side 70 was asked for"):
        plan(RandomScales(p=32, r_min=70, count=2), Listed((90, 64), (90, 64)), Listed(*[(200, 200)] * 2))
    with pytest.raises(EvaluationError, match=r"fake/\d\.png: 64x64; side \d+ was asked for"):
        plan(RandomScales(p=32, r_min=100, count=2), Listed((200, 200)), Listed(*[(64, 64)] * 2, uri="fake"))


@pytest.mark.parametrize(("make", "field"), [
    (lambda: OneCrop(p=64, r=63), "crops.r=63: must be at least p=64"), (lambda: OneCrop(p=8, r=64), "crops.p=8"),
    (lambda: RandomScales(p=64, r_min=32), "crops.r_min=32: must be at least p=64"),
    (lambda: RandomScales(p=64, r_min=64, r_max=63), "crops.r_max=63"), (lambda: WholeImages(side=7), "crops.side=7")])
def test_error_config(make, field):
    with pytest.raises(ConfigError, match=field):
        make()
