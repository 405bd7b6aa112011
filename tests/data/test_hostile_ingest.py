"""A folder of hostile files made from real photographs goes through the ingest itself: every file is a photo or a reject.

A subprocess with bounded memory plans, reads, cuts, writes and commits, all but Ray; it says which file comes next, so that
one that crashes or hangs it is named.
"""

import json
import resource
import sys

import pytest
from data import photographs
from data.children import Lines, peak_bytes, started
from data.fuzzer import corpus, photograph_seeds

from infd import config_form
from infd.config import IngestConfig
from infd.data import photo
from infd.data.snapshot import open_dataset
from pipelines import ingest, ingest_plan

CONFIG = IngestConfig(max_pixels=20_000_000, min_side_px=16)
HANG_S, START_S = 10, 120
ADDRESS_BYTES = 4 << 30
"""RLIMIT_AS of the subprocess, as in test_hostile.py, and what Arrow maps."""
PEAK_BYTES = 700 << 20
"""Peak of resident memory over all files, of which about 200 MB are Python and its libraries."""


def ingest_all(source: str, dataset: str) -> None:
    """What the subprocess does: a line with the uri before each file, and one with the snapshot's at the end."""
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_BYTES, ADDRESS_BYTES))
    read = ingest.read_source

    def told(info, config):
        print(json.dumps({"begin": info.uri, "peak": peak_bytes()}), flush=True)
        return read(info, config)

    def run(plan, tasks):
        for task in tasks:
            ingest.run_unit(task, run_uri=plan.uri(), dataset=plan.dataset, config=config_form.flat(plan.config), group="")

    ingest.read_source, ingest.run_on_ray = told, run
    made = ingest.ingest(source, dataset, config=CONFIG)
    print(json.dumps({"done": made.snapshot_uri, "peak": peak_bytes()}), flush=True)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_law_hostile_photographs_are_ingested_or_rejected(tmp_path):
    source, dataset = tmp_path / "photos", str(tmp_path / "ds")
    source.mkdir()
    for name, data in corpus(photograph_seeds(), photographs.opened(photographs.files()["china.jpg"]), seed=1, times=6):
        (source / name).write_bytes(data)
    files = {str(path) for path in source.iterdir()}
    assert len(files) >= 500
    peak, failure = watched(str(source), dataset)
    assert not failure
    opened = open_dataset(dataset)
    ingested = [opened[row]["uri"] for row in range(len(opened))]
    rejects = ingest_plan.read_rows(f"{dataset}/runs/{opened.manifest.info['run']}/rejects.parquet")
    assert sorted([*ingested, *(row["uri"] for row in rejects)]) == sorted(files)  # each once
    tally = ingest_plan.tally(rejects)
    counts = opened.manifest.info["counts"]
    assert (counts["photos"], counts["rejected"]) == (len(ingested), tally)
    assert set(tally) <= set(photo.REASONS) - {"unreadable", "changed", "killed"}  # which are not the file's own
    assert {"corrupt", "truncated", "unsupported", "empty", "too_many_pixels", "bomb", "duplicate"} <= set(tally)
    assert len(ingested) >= 100  # not all are refused at the door
    for row in range(0, len(opened), 10):
        opened.lowres(row, size=16)
    assert peak < PEAK_BYTES
    print(f"\n{len(files)} files: {len(ingested)} photos, {tally}; peak {peak >> 20} MB")


def watched(source: str, dataset: str) -> tuple[int, str]:
    """The subprocess's peak in bytes; what went wrong with which file, or ''."""
    worker = started(__file__, source, dataset)
    assert worker.stdout is not None
    lines, at, peak = Lines(worker.stdout.fileno()), "", 0
    try:
        while True:
            line = lines.next(HANG_S if at else START_S)
            if line is None:
                return peak, f"{at} hangs for more than {HANG_S} s"
            if not line:
                return peak, f"{at} ends the process with {worker.wait()}"
            message = json.loads(line)
            at, peak = message.get("begin", ""), message["peak"]
            if "done" in message:
                return peak, ""
    finally:
        worker.kill()
        worker.wait()
        worker.stdout.close()


if __name__ == "__main__":
    ingest_all(*sys.argv[1:])
