"""A dataset brought up to date with its sources, in four steps: lease → ingest of what is new → verify → commit.

Sources, groups and configs are those that the newest snapshot records. What an ingest would commit is verified first:
every byte of its new shards, the pixels of a sample of its new photos, the manifest, the presence of all shards. Only
then is the manifest written, so a snapshot that fails is never one that `open_dataset` gives. A refresh that is killed
goes on where it was; two at once, or one and a plain ingest, exclude each other by a lease (pipelines.ingest.alone).
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from infd import config_form, lease, storage
from infd.config import IngestConfig
from infd.data import history, snapshot, verify
from infd.data.verify import Content, Finding, Report
from infd.errors import DatasetError, InfdError, PreconditionFailed
from pipelines import ingest_plan
from pipelines.ingest import Ingested, alone, ingest
from pipelines.ingest_plan import Outcome, Plan
from pipelines.ingest_report import readable
from pipelines.progress import duration
from pipelines.snapshots_text import difference_lines

logger = logging.getLogger(__name__)

SHOWN_FINDINGS = 20
SHOWN_URIS = 5


Repair = Literal["no", "missing", "damaged"]


class VerificationFailed(DatasetError):
    """What an ingest would have committed is not what its manifest says; nothing was committed."""

    exit_code = 4


@dataclass(frozen=True, kw_only=True)
class Refreshed:
    """`snapshot_uri` is what readers get from now on; `report` is a page for people; `exit_code` is 0, 1, 2, 4 or 5,
    that of the first source that failed."""

    snapshot_uri: str
    exit_code: int
    report: str
    report_uri: str
    """Where the report is stored; empty where the refresh ended before it had a plan."""


@dataclass(kw_only=True)
class Part:
    """What became of one source."""

    source: str
    group: str
    plan: Plan | None = None
    outcome: Outcome | None = None
    checked: Report | None = None
    made: Ingested | None = None
    error: InfdError | None = None


@dataclass(kw_only=True)
class Course:
    """A refresh as it goes on; what the report is made of."""

    root: str
    before: int
    began: float = field(default_factory=time.time)
    parts: list[Part] = field(default_factory=list)


def refresh(
    dataset: str, *, remove_missing: bool = False, most_removed: float = ingest_plan.MOST_REMOVED,
    repair: Repair = "no", sample: int = verify.SAMPLED_PHOTOS, patience_s: float = lease.PATIENCE_S,
) -> Refreshed:
    """Take what is new at the sources of `dataset` into a verified snapshot; nothing new is fine too.

    `repair`: photos in shards that are missing (not in the store, or of another size) or damaged (every byte is read to
    know) are read again, and these shards are written anew or named no more; "no": missing ones are a failure, before
    anything is read. A source that fails does not keep the others from being refreshed.
    Law: readers see the old snapshot or a verified one, wherever it stops. Raises LeaseHeld (exit code 3) where another
    refresh or ingest is at work (one that gave no sign of life for patience_s is not), DatasetError where there is no
    dataset, or one without a source.
    """
    ingest_plan.require_dataset_address(dataset)
    root, _ = history.located(dataset)
    with alone(root, what="refresh of", patience_s=patience_s):
        number = snapshot.newest_number(root) or 0
        course = Course(root=root, before=number)
        rows, lost = sources_of(root, number), lost_shards(root, number, hashed=repair == "damaged")
        if lost and repair == "no":
            course.parts.append(Part(source=f"{root}@{number}", group="", error=VerificationFailed(
                f"{root}@{number}: {len(lost)} of its shards are not in the store, or of another size (first: {min(lost)}); "
                "nothing was read or committed; restore them from a copy, or run this with --repair missing")))
            rows = []
        for row in rows:
            part = Part(source=row["source"], group=row["group"] or "")
            course.parts.append(part)
            try:
                config = config_form.unflat(IngestConfig, row["config"])
                part.made = ingest(part.source, root, config=config, group=part.group, remove_missing=remove_missing,
                                   most_removed=most_removed, lost=lost, accept=verified(part, sample=sample))
                part.plan, part.outcome = part.made.plan, part.made.outcome
            except InfdError as error:
                part.error = error
                if isinstance(error, PreconditionFailed):  # someone else commits to this dataset
                    break
        return finished(course)


def sources_of(root: str, number: int) -> list[dict]:
    """The sources that the newest snapshot records. Raises DatasetError where it has none."""
    found = ingest_plan.recorded_sources(history.facts(root, number).info)
    if not found:
        raise DatasetError(f"{root}@{number}: it records no source, it was not made by an ingest; expected one to refresh "
                           "from; run jobs/ingest.py --source … once")
    return found


def lost_shards(root: str, number: int, *, hashed: bool) -> set[str]:
    """sha256 of the snapshot's shards that are not in the store, or have another size there, or, where each is read to be
    `hashed`, other bytes."""
    content = verify.read_content(f"{root}@{number}")
    lost = {finding.shard for finding in verify.missing_shards(content)}
    for entry in content.entries if hashed else ():
        if entry["sha256"] not in lost:
            try:
                with verify.local_shard(root, entry):
                    pass
            except DatasetError as error:
                logger.warning("%s", error)
                lost.add(entry["sha256"])
    logger.info("%s@%d: %d of %d shards are lost", root, number, len(lost), len(content.entries))
    return lost


def verified(part: Part, *, sample: int) -> Callable[[Plan, Outcome], None]:
    """What `ingest` asks before it commits: raises VerificationFailed, and lets the units at fault be written anew."""
    def accept(plan: Plan, outcome: Outcome) -> None:
        part.plan, part.outcome = plan, outcome
        part.checked = check_new(plan, outcome, sample=sample)
        if part.checked.findings:
            at_fault = {finding.shard for finding in part.checked.findings}
            again = ingest_plan.forget_units(plan, at_fault)
            text = "".join(f"{finding.text}\n" for finding in part.checked.findings)
            storage.put_atomic(plan.uri("findings.txt"), text.encode())
            raise VerificationFailed(
                f"{plan.dataset}: the snapshot that run {plan.run} made is not what it should be "
                f"({len(part.checked.findings)} findings, first: {part.checked.findings[0].text}); nothing was committed; "
                f"see {plan.uri('findings.txt')}; the next refresh writes {again} units anew"
                + advice(len(at_fault & parents_shards(plan))))

    return accept


def parents_shards(plan: Plan) -> set[str]:
    """sha256 of the shards that were there before."""
    return {entry["sha256"] for entry in plan.parent.entries} - {*plan.lost} if plan.parent else set()


def advice(lost: int) -> str:
    """What to do about shards of before, which no refresh writes by itself."""
    return f"; {lost} shards of before are lost: restore them, or run this with --repair missing" if lost else ""


def check_new(plan: Plan, outcome: Outcome, *, sample: int) -> Report:
    """Verify what a run would commit: every byte of the shards that the parent has not, a sample of their photos."""
    had = parents_shards(plan)
    new = [i for i, entry in enumerate(outcome.entries) if entry["sha256"] not in had]
    number = plan.parent.number + 1 if plan.parent else 1
    content = Content(root=plan.dataset, name=f"{plan.dataset}@{number}", entries=outcome.entries, info=outcome.info(plan))
    return verify.check(content, whole=new, photos=verify.sampled_rows(outcome.entries, sample, seed=number, of=new))


# ---------------------------------------------------------------- the report


def finished(course: Course) -> Refreshed:
    """The end of a refresh: its report, stored beside the run of every source that had a plan."""
    number = snapshot.newest_number(course.root) or 0
    errors = [part.error for part in course.parts if part.error]
    text = report_text(course, number)
    stored = [part.plan.uri("refresh.md") for part in course.parts if part.plan]
    for uri in dict.fromkeys(stored):
        storage.put_atomic(uri, text.encode())
    return Refreshed(snapshot_uri=f"{course.root}@{number}", exit_code=errors[0].exit_code if errors else 0, report=text,
                     report_uri=stored[-1] if stored else "")


def report_text(course: Course, number: int) -> str:
    """One page of markdown: what came of it, then each source."""
    failed = [(part.error.exit_code, part.source) for part in course.parts if part.error]
    new = [part for part in course.parts if part.made and part.made.is_new]
    done = (f"**failed**, exit code {failed[0][0]}, at {', '.join(source for _, source in failed)}" if failed
            else "**new snapshot**" if new else "**nothing new**")
    when = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(course.began))
    lines = [f"# Refresh of {course.root}", "", f"{when}, took {duration(time.time() - course.began)}: {done}. Readers get "
             f"snapshot {number}" + (f" (before: {course.before})." if number != course.before else ", as before."), ""]
    for part in course.parts:
        lines += part_lines(part)
    return "\n".join(lines).rstrip() + "\n"


def part_lines(part: Part) -> list[str]:
    """What became of one source."""
    lines = [f"## {part.source}" + (f" (group {part.group})" if part.group else ""), ""]
    plan, outcome = part.plan, part.outcome
    if plan:
        lines += [f"- run {plan.run}: {plan.listed} files listed, {plan.photos} new or changed, {len(plan.removed)} gone"]
    if plan and outcome:
        reasons = ", ".join(f"{reason} {count}" for reason, count in ingest_plan.tally(outcome.new_rejects).items())
        lines += [f"- kept {outcome.kept}, rejected {len(outcome.new_rejects)}" + (f" ({reasons})" if reasons else "")]
    if part.checked:
        lines += [f"- verified: {part.checked.summary()}"]
    if plan and outcome and part.made and part.made.is_new:
        now = snapshot.counts(outcome.entries)
        lines += [f"- {part.made.snapshot_uri}: {now['photos']} photos, {now['shards']} shards, {readable(now['bytes'])}"]
        change = history.difference_of(plan.parent.entries if plan.parent else [], outcome.entries)
        lines += ["", "```", *difference_lines(change, limit=SHOWN_URIS), "```"]
    elif part.made:
        lines += ["- nothing new"]
    if part.error:
        lines += [f"- {type(part.error).__name__}: {part.error}"]
    return [*lines, *finding_lines(part.checked.findings if part.checked else []), ""]


def finding_lines(findings: list[Finding]) -> list[str]:
    """The first findings, and how many more."""
    if not findings:
        return []
    more = len(findings) - SHOWN_FINDINGS
    return ["", "What is wrong:", "", *(f"- {finding.text}" for finding in findings[:SHOWN_FINDINGS]),
            *([f"- … and {more} more, in findings.txt of the run"] if more > 0 else [])]
