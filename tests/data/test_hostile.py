"""Hostile files of every format: each ends as a photo or as a word of REASONS; nothing crashes, hangs or takes the memory.

fuzzer.py makes them, here of synthetic pictures, in test_hostile_ingest.py of photographs. A subprocess with bounded memory
decodes each twice, and says which file it is at before it begins, so that a crash of a native decoder names its file; then
the next subprocess goes on behind it.
"""

import collections
import json
import os
import resource
import sys
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from data.children import Lines, peak_bytes, started
from data.fuzzer import corpus, seeds
from pictures import encoded, picture

from infd.data import photo

HANG_S = 10
START_S = 120
"""Importing NumPy and the codecs on a machine that does other work."""
ADDRESS_BYTES = 3 << 30
"""RLIMIT_AS of the subprocess: libraries and their threads' stacks map about 1 GiB."""
PEAK_BYTES = 700 << 20
"""Peak of resident memory over all files, of which about 150 MB are Python and its libraries."""
LIMITS = {"max_pixels": 20_000_000, "min_side_px": 16, "max_aspect": 16.0}
LEAST = 500


# ---------------------------------------------------------------- the runner


def decode_all(folder: Path, names: list[str]) -> None:
    """What the subprocess does: a line with the name before a file, a line with the outcome after it."""
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_BYTES, ADDRESS_BYTES))
    for name in names:
        print(json.dumps({"begin": name}), flush=True)
        data = (folder / name).read_bytes()
        outcomes = [outcome(data), outcome(data)]
        peak = peak_bytes()
        print(json.dumps({"end": name, "outcomes": outcomes, "peak": peak}), flush=True)


def outcome(data: bytes) -> str:
    try:
        image = photo.decode(data, **LIMITS)
    except photo.PhotoError as error:
        return f"{error.reason}: {error.detail}"
    except MemoryError:
        return "MemoryError"
    except Exception as error:  # not PhotoError: our bug, which the test names
        return f"raised {type(error).__name__}: {error}"
    return f"photo {image.width}x{image.height} {zlib.crc32(image.tobytes()):08x}"


def run(folder: Path, names: list[str]) -> Iterator[tuple[str, dict]]:
    """(name, {outcomes, peak} or {failure}) of every file, whatever becomes of the subprocess."""
    waiting = list(names)
    while waiting:
        at = None
        for at, result in one_run(folder, waiting):
            yield at, result
        if at is None:
            raise AssertionError("the subprocess does not start")
        waiting = waiting[waiting.index(at) + 1:]


def one_run(folder: Path, names: list[str]) -> Iterator[tuple[str, dict]]:
    (folder / "names.json").write_text(json.dumps(names))
    worker = started(__file__, str(folder))
    assert worker.stdout is not None
    current, lines = None, Lines(worker.stdout.fileno())
    try:
        while True:
            line = lines.next(HANG_S * 2 if current else START_S)  # a file is decoded twice
            if line is None:
                worker.kill()
                if current:
                    yield current, {"failure": f"hangs for more than {HANG_S} s"}
                return
            if not line:
                code = worker.wait()
                if current:
                    yield current, {"failure": f"ends the process with {code}"}
                return
            message = json.loads(line)
            current = message.get("begin")
            if not current:
                yield message["end"], message
    finally:
        worker.kill()
        worker.wait()
        worker.stdout.close()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_law_hostile_files_become_photos_or_reasons(tmp_path):
    names = []
    for name, data in corpus(seeds(), picture(640, 480)):
        (tmp_path / name).write_bytes(data)
        names.append(name)
    assert len(names) == len(set(names)) >= LEAST
    results = dict(run(tmp_path, names))
    assert list(results) == names
    failures = {name: result["failure"] for name, result in results.items() if "failure" in result}
    counts: collections.Counter[str] = collections.Counter()
    for name, result in results.items():
        first, second = result.get("outcomes", ("", ""))
        word = first.split(" ")[0].rstrip(":")
        counts[word] += 1
        if "failure" not in result and (first != second or word not in (*photo.REASONS, "photo")):
            failures[name] = f"{first} | {second}"
    print(f"{len(names)} files: {dict(counts)}; peak {max(result.get('peak', 0) for result in results.values()) >> 20} MB")
    assert not failures
    assert {"photo", "corrupt", "truncated", "unsupported", "empty", "too_many_pixels", "bomb"} <= set(counts)
    assert counts["photo"] >= 50  # not all are refused at the door
    assert max(result["peak"] for result in results.values()) < PEAK_BYTES


@pytest.mark.slow
def test_law_the_runner_names_what_crashes_and_what_hangs(tmp_path, monkeypatch):
    """The test of the test: a file that kills the process and one that never ends are reported, and the next goes on."""
    monkeypatch.setattr(sys.modules[__name__], "HANG_S", 1)
    names = ["good.png", "crash", "hang", "again.png"]
    for name in names:
        (tmp_path / name).write_bytes(encoded(picture(32, 32)) if name.endswith("png") else name.encode())
    results = dict(run(tmp_path, names))
    assert results["crash"]["failure"].startswith("ends the process with -")
    assert results["hang"]["failure"] == "hangs for more than 1 s"
    assert all(results[name]["outcomes"][0].startswith("photo 32x32") for name in ("good.png", "again.png"))


def main() -> None:
    folder = Path(sys.argv[1])
    decode = photo.decode

    def watched(data: bytes, **limits: float):
        if data == b"crash":
            os.abort()
        while data == b"hang":
            time.sleep(1)
        return decode(data, **limits)

    photo.decode = watched
    decode_all(folder, json.loads((folder / "names.json").read_text()))


if __name__ == "__main__":
    main()
