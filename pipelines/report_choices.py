"""How each figure of a report was made: every choice behind a column, in words and by field, under the column's number."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from infd.data.snapshot import split_address
from infd.evaluation.crops import SUBCROP_PX
from infd.evaluation.result import Result
from pipelines.report_tables import COUNTED, PLACES, Table, condition_of, condition_text, title, validation

Line = tuple[str, str]
"""(what, how)."""
TITLES_SHOWN = 6
FIRST = ("images", "side", "mode", "to_8_bits", "sampling", "seeds")
"""What is told first of images that were judged."""
WORDS = {"of": "of content", "lowres_px": "encoder's side", "through_px": "of photographs brought first to side",
         "to_8_bits": "to 8 bits:"}


@dataclass(frozen=True)
class Made:
    """A result of a condition, and whose it is."""

    row: str
    folder: str
    """Empty: training's own validation."""
    result: Result


@dataclass(frozen=True, kw_only=True)
class Condition:
    """What figures have in common that may be compared. `number` from 1, as the columns have it."""

    number: int
    key: str
    text: str
    made: list[Made]

    @property
    def result(self) -> Result:
        return self.made[0].result

    @property
    def figures(self) -> list[str]:
        """Titles of the figures that were made so."""
        return list(dict.fromkeys(title(one.name) for made in self.made for one in made.result.metrics))

    @property
    def heading(self) -> str:
        """The figures, the first of many."""
        names, more = self.figures[:TITLES_SHOWN], len(self.figures) - TITLES_SHOWN
        return " · ".join([*names, *([f"{more} more"] if more > 0 else [])])


def conditions(table: Table) -> list[Condition]:
    """In the order of the columns; then those of figures that have none. Law: a number stands for one condition."""
    found: dict[str, list[Made]] = {column.condition: [] for column in table.columns if column.condition}
    for row in table.rows:
        for folder, result in [*zip(row.folders, row.results, strict=True), *(("", one) for one in validation(row))]:
            found.setdefault(condition_of(result), []).append(Made(row.name, folder, result))
    texts = told_apart([made[0].result for made in found.values()])
    return [Condition(number=number, key=key, text=text, made=made)
            for number, ((key, made), text) in enumerate(zip(found.items(), texts, strict=True), 1)]


def told_apart(results: Sequence[Result]) -> list[str]:
    """The words of each condition; where several have the same, with the choices that all of these have and in which they
    differ; where that does not tell them apart, with 8 digits of the condition. Law: no two are equal."""
    texts = [condition_text(result) for result in results]
    made = []
    for text, result in zip(texts, results, strict=True):
        facts, own = [identity(other) for other, same in zip(results, texts, strict=True) if same == text], identity(result)
        differ = [name for name in own if all(name in other for other in facts)
                  and any(other[name] != own[name] for other in facts)]
        made.append("; ".join([text, *([", ".join(f"{name} {plain(own[name])}" for name in differ)] if differ else [])]))
    return [f"{text}; condition {condition_of(result)[:8]}" if made.count(text) > 1 else text
            for text, result in zip(made, results, strict=True)]


def identity(result: Result) -> dict[str, Any]:
    """What a condition is made of, by name, in few characters."""
    choices = {name: value for name, value in result.choices.items() if name not in (*PLACES, *COUNTED, "name")}
    weights = {f"weights of {one['name']}": str(one["weights_sha256"])[:8] for one in result.networks}
    content = {"content": str(result.sources[0]["fingerprint"])[:8]} if "fields" not in result.counts else {}
    return {"protocol": result.protocol, **choices, **weights, **content}


# ---------------------------------------------------------------- the table of a condition


def lines_of(condition: Condition) -> list[Line]:
    """Everything that the figures of a condition depend on. Law: each choice of the protocol stands in the last line."""
    result = condition.result
    choices = result.choices
    lines = [("protocol", result.protocol), *truth_lines(result), ("counts", counts_text(result)), *crop_lines(choices)]
    lines += [(f"network {one['name']}", network_text(one)) for one in result.networks]
    lines += distance_lines(choices) + pair_lines(choices)
    if "resizes" in choices:
        lines.append(("renders brought to each other's side by", plain(choices["resizes"])))
    lines += by_row("judged", condition.made, lambda result: judged_text(judged_of(result)[-1]) if judged_of(result) else "")
    lines += by_row("device", condition.made, lambda result: str(result.choices.get("device", "")))
    lines += by_row("weights from", condition.made,
                    lambda result: str(result.choices.get("network.weights") or result.choices.get("weights") or ""))
    lines += by_row("libraries", condition.made,
                    lambda result: ", ".join(f"{name} {version}" for name, version in sorted(result.versions.items())))
    lines += by_row("every choice", condition.made, choices_text)
    return [(what, how) for what, how in lines if how]


def choices_text(result: Result) -> str:
    """Every field of the protocol, but for where it was carried out."""
    return "; ".join(f"{name} {plain(value)}" for name, value in sorted(result.choices.items()) if name not in PLACES)


def truth_lines(result: Result) -> list[Line]:
    """Where the truth lies, and its content to the last digit."""
    if "fields" in result.counts:
        sides = ", ".join(str(one["side"]) if "side" in one else str(one["uri"]) for one in result.sources)
        return [("compared", f"renders of the same fields: {sides}")]
    truth = result.sources[0]
    root, number = split_address(str(truth["uri"]))
    where = f"snapshot {number} of {root}" if number is not None else str(truth["uri"])
    parts = [where, *([f"split {truth['split']}"] if "split" in truth else []),
             *([f"{truth['images']:,} images"] if "images" in truth else []),
             *([str(truth["decoding"])] if "decoding" in truth else [])]
    content = truth["fingerprint"]
    return [("truth", ", ".join(parts)), ("content of the truth", str(content) if content != truth["uri"] else "")]


def counts_text(result: Result) -> str:
    names = {"a": "real", "b": "judged"}
    return ", ".join(f"{count:,} {names.get(name, name)}" for name, count in sorted(result.counts.items()))


def crop_lines(choices: dict[str, Any]) -> list[Line]:
    """Which pixels of which image."""
    def of(name: str) -> Any:
        return choices[f"crops.{name}"]

    match choices.get("crops.kind"):
        case "OneCrop":
            sides = "which all images must have" if of("prepare") == "exact" else "centre square, brought there by Lanczos"
            text = f"one random {of('p')} x {of('p')} px crop of each image at side {of('r')} ({sides})"
        case "WholeImages":
            text = f"the centre square, brought to {of('side')} px by Lanczos" if of("side") else "whole images as they are"
        case "RandomScales":
            text = (f"{of('count'):,} patches of {of('p')} px from views of random side {of('r_min')} to "
                    f"{of('r_max') or 'native'} (Lanczos; view {of('view')}, mirrored at random: {plain(of('flip'))})"
                    + (f", cut to {SUBCROP_PX} px" if of("p") > SUBCROP_PX else ""))
        case _:
            return []
    seeds = choices.get("seeds", choices.get("seed"))
    return [("crops", text), ("crop seeds", plain(seeds))]


def network_text(one: dict[str, Any]) -> str:
    """What becomes of the input, and the hash of the weights."""
    features = f"; {one['features']:,} features" if "features" in one else ""
    return f"input {one['input']}{features}; sha256 {one['weights_sha256']}"


def distance_lines(choices: dict[str, Any]) -> list[Line]:
    """How features become figures; of those that were asked for."""
    if "ddof" not in choices:
        return []
    asked = choices.get("metrics", ("frechet",))
    lines = [("images at once", plain(choices.get("batch", "")))]
    if "frechet" in asked:
        lines.append(("covariances", "divided by N − 1 (ddof 1)" if choices["ddof"] else "divided by N (ddof 0)"))
    lines += [(words, group_text(choices, head)) for name, words, head in (
        ("kid", "KID", "kid."), ("precision_recall", "precision, recall", "precision_recall.")) if name in asked]
    return lines


def group_text(choices: dict[str, Any], head: str) -> str:
    """The choices whose names begin with `head`: "degree 3, subset size 1000"."""
    return ", ".join(f"{name.removeprefix(head).replace('_', ' ')} {plain(value)}" for name, value in choices.items()
                     if name.startswith(head))


def pair_lines(choices: dict[str, Any]) -> list[Line]:
    """How pairs are brought to a side and scored."""
    if "psnr_pool" not in choices:
        return []
    how = choices.get("resample") or choices.get("resize", "")
    sides = f"{plain(choices['sizes'])} px, centre square by {how}" if choices.get("sizes") else "as they are"
    pool, border = choices["psnr_pool"], choices["border_px"]
    pooled = f"errors averaged over {pool} pairs before decibels" if pool > 1 else "of each pair"
    return [("sides", sides), ("PSNR", f"{pooled}; border of {border} px left out")]


def judged_of(result: Result) -> tuple[dict[str, Any], ...]:
    """The sources but the truth; () of training's own validation, which has no other."""
    return result.sources if "fields" in result.counts else tuple(one for one in result.sources[1:] if one != result.sources[0])


def judged_text(source: dict[str, Any]) -> str:
    """All that a source tells of itself but its address, hashes short."""
    parts = [str(source.get("kind", ""))]
    for name, value in sorted(source.items(), key=lambda item: (item[0] not in FIRST, item[0])):
        if isinstance(value, dict):
            parts += [f"{key} {plain(one)}" for key, one in value.items() if one != ""]
        elif name not in ("uri", "kind") and (name, value) != ("through_px", 0):
            parts.append(f"{WORDS.get(name, name.replace('_', ' '))} {short(value)}")
    return "; ".join(part for part in parts if part)


def by_row(what: str, made: Sequence[Made], tell: Callable[[Result], str]) -> list[Line]:
    """One line where all rows agree, else one a row."""
    found = {one.row: tell(one.result) for one in made}
    if len(set(found.values())) == 1:
        return [(what, next(iter(found.values())))]
    return [(f"{what}: {row}", text) for row, text in found.items()]


def plain(value: Any) -> str:
    """Lists without brackets; yes and no."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(map(plain, value)) or "none"
    return "–" if value in ("", None) else str(value)


def short(value: Any) -> str:
    """12 digits of a sha256."""
    text = plain(value)
    return text[:12] if len(text) == 64 and set(text) <= set("0123456789abcdef") else text


# ---------------------------------------------------------------- JSON


def as_tree(condition: Condition) -> dict[str, Any]:
    """A condition whole, hashes to the last digit."""
    result = condition.result
    return {
        "number": condition.number, "condition": condition.key[:8], "figures": condition.figures, "conditions": condition.text,
        "protocol": result.protocol, "counts": result.counts, "networks": list(result.networks),
        "choices": {name: value for name, value in result.choices.items() if name not in PLACES},
        "truth": None if "fields" in result.counts else result.sources[0],
        "made": [{"row": one.row, "folder": one.folder, "versions": one.result.versions, "judged": list(judged_of(one.result)),
                  "places": {name: value for name, value in one.result.choices.items() if name in (*PLACES, *COUNTED)}}
                 for one in condition.made]}
