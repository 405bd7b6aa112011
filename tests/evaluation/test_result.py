"""Results: strict JSON there and back, numbers that are not finite included."""

import json
import math

import pytest

from infd.evaluation.errors import EvaluationError
from infd.evaluation.result import Metric, Result, metric, read_result


def result() -> Result:
    return Result(
        protocol="reconstruction", choices={"sizes": [64], "metrics": ["psnr"]}, sources=({"uri": "a", "images": 3},),
        metrics=(metric("psnr@64", [math.inf, 30.0, 32.0], better="higher", over="images"),
                 metric("fid", [3.25], better="lower"), metric("psnr", [math.inf, math.inf], better="higher"),
                 Metric(name="odd", value=math.nan, values=(-math.inf,))),
        counts={"pairs": 3}, networks=({"name": "nan"},), curves={"power": (1.0, 2.5)}, items=("inf", "b", "ü"), notes=("x",),
        versions={"torch": "2"})


def test_law_mean_and_spread_are_over_what_is_finite():
    one, two, three, _ = result().metrics
    assert (one.value, one.spread) == (31.0, pytest.approx(math.sqrt(2)))
    assert (two.value, two.spread) == (3.25, None)
    assert (three.value, three.spread) == (math.inf, None)
    assert result()["fid"] == 3.25
    with pytest.raises(KeyError, match="kid: the metrics are psnr@64, fid, psnr, odd"):
        result()["kid"]


def test_law_json_is_strict_and_comes_back_the_same(tmp_path):
    data = result().to_json()
    tree = json.loads(data, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    assert tree["metrics"][0]["values"] == ["inf", 30.0, 32.0] and tree["metrics"][3]["value"] == "nan"
    result().write(str(tmp_path / "r.json"))
    again = read_result(str(tmp_path / "r.json"))
    assert again.to_json() == data
    assert again.metrics[0].values == (math.inf, 30.0, 32.0) and math.isnan(again.metrics[3].value)
    assert again.items == ("inf", "b", "ü") and again.networks == ({"name": "nan"},)
    assert again.curves == {"power": (1.0, 2.5)}


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b'{"format": "infd-evaluation-1"}', b'{"format": "infd-evaluation-0"}'])
def test_error_another_file(data):
    with pytest.raises(EvaluationError, match="^x.json: (cannot be read as a result|format infd-evaluation-0; expected)"):
        Result.from_json(data, name="x.json")
