"""The doctor: what it flags, what makes it fail, and how its screen looks."""

import http.server
import json
import re
import socket
import subprocess
import sys
import threading

import PIL
import pytest

from infd import storage
from jobs import doctor as job
from pipelines import doctor
from pipelines.doctor import Finding


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch, tmp_path):
    for name in ("AWS_ENDPOINT_URL", "RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_TOKEN", "MLFLOW_TRACKING_URI",
                 "INFD_BUCKET"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("INFD_WEIGHTS", str(tmp_path / "weights"))


@pytest.fixture
def closed_address() -> str:
    """A loopback address on which nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"127.0.0.1:{server.getsockname()[1]}"


class Answers(http.server.BaseHTTPRequestHandler):
    """Answers /version and refuses the rest, as an object store does without credentials."""

    def do_GET(self) -> None:
        known = self.path == "/version"
        self.send_response(200 if known else 403)
        self.end_headers()
        self.wfile.write(b"3.17.2" if known else b"denied")

    def log_message(self, format: str, *args) -> None:
        """Tests stay quiet."""


@pytest.fixture
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def test_job_doctor_passes_here_and_prints_one_screen(capsys):
    assert job.main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) < 50
    assert any(re.match(r"ok    torch +2\.", line) for line in lines)
    assert any(re.match(r"ok    PIL +pillow-simd .* build", line) for line in lines)
    assert any(re.match(r"warn  lpips-vgg +missing; looked for at ", line) for line in lines)
    assert lines[-1].endswith("the main job can run")


def test_job_doctor_fails_where_the_store_does_not_answer(closed_address, monkeypatch, capsys):
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{closed_address}")
    monkeypatch.setenv("RAY_ADDRESS", closed_address)
    assert job.main(["--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    failed = {finding["name"]: finding for finding in report["findings"] if finding["mark"] == "FAIL"}
    assert report["can_run"] is False
    assert set(failed) == {"object store", "Ray"}
    assert closed_address in failed["Ray"]["found"] and "make up" in failed["object store"]["advice"]


def test_job_help_loads_neither_torch_nor_ray():
    code = ("import sys\nfrom jobs import doctor, weights\n"
            "for job in (doctor, weights):\n"
            "    try: job.main(['--help'])\n"
            "    except SystemExit as end: assert end.code == 0\n"
            "assert not {'torch', 'ray', 'mlflow', 'pyarrow'} & set(sys.modules)\n")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_law_advice_stands_under_its_line_within_the_width():
    findings = [Finding("warn", "thing", "word " * 60, "do this " * 40), Finding("ok", "other", "fine")]
    lines = doctor.screen(findings, width=100).splitlines()
    assert max(map(len, lines)) <= 100
    assert lines[0].startswith("warn  thing          word")
    assert any(line.startswith(" " * 21 + "→ do this") for line in lines)
    assert lines[-1] == "1 ok, 1 warn, 0 FAIL: the main job can run"


def test_law_conditional_writes_are_tried_and_the_probe_is_gone(tmp_path):
    assert doctor.conditional_writes(str(tmp_path)).mark == "ok"
    assert list(storage.list_objects(str(tmp_path))) == []


def test_error_store_that_ignores_the_condition_fails(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "put_if_absent", storage.put_atomic)
    finding = doctor.conditional_writes(str(tmp_path))
    assert finding.mark == "FAIL" and "accepts a second write" in finding.found
    assert list(storage.list_objects(str(tmp_path))) == []


def test_law_store_without_a_bucket_says_how(server, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", server)
    store, condition = doctor.object_store("")
    assert (store.mark, condition.mark) == ("ok", "warn")
    assert "--bucket" in condition.advice


def test_law_mlflow_version_is_shown_and_a_dead_server_warned_of(server, closed_address, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    assert [finding.found for finding in doctor.mlflow_server()] == [f"{server} answers, version 3.17.2"]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://{closed_address}")
    assert [finding.mark for finding in doctor.mlflow_server()] == ["warn"]


@pytest.mark.parametrize(("host", "flagged"), [("127.0.0.1", False), ("0.0.0.0", True)])
def test_law_a_dashboard_open_to_others_is_flagged(monkeypatch, host, flagged):
    with socket.create_server((host, 0)) as listening:
        port = listening.getsockname()[1]
        monkeypatch.setattr(doctor, "dashboard_ports", lambda: {port})
        findings = list(doctor.dashboard())
    assert [finding.mark for finding in findings] == (["warn"] if flagged else ["ok"])
    assert str(port) in findings[0].found
    assert ("--dashboard-host=127.0.0.1" in findings[0].advice) is flagged


def test_law_dashboard_with_a_refusing_address_is_warned_of(server, monkeypatch):
    monkeypatch.setattr(doctor, "dashboard_ports", set)
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", server)
    findings = list(doctor.dashboard())
    assert [finding.mark for finding in findings] == ["warn"] and "HTTP 403" in findings[0].found


def test_law_plain_pillow_is_warned_of(monkeypatch):
    monkeypatch.setattr(PIL, "__version__", "13.0.0")
    finding = next(iter(doctor.pillow()))
    assert finding.mark == "warn" and "plain Pillow 13.0.0" in finding.found


def test_error_pil_without_jpeg_fails(monkeypatch):
    from PIL import features

    monkeypatch.setattr(features, "check", lambda feature: feature != "jpg")
    marks = {finding.name: finding.mark for finding in doctor.pillow()}
    assert marks["JPEG"] == "FAIL" and marks["PNG"] == marks["WebP"] == "ok"


def test_error_torch_that_cannot_be_imported_fails(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    failed = [finding for finding in doctor.software() if finding.mark == "FAIL"]
    assert [finding.name for finding in failed] == ["torch"] and failed[0].advice == "run make setup"
    assert not doctor.can_run(failed)


def test_law_the_level_of_a_build_is_told_by_its_instructions(tmp_path):
    library = tmp_path / "lib.so"
    library.write_bytes(b"\x66\x0f\x38\x00" * 5000)
    assert doctor.simd_build(library) == "SSE4"
    library.write_bytes(b"\xc5\xfd\x6f\x00" * 5000)
    assert doctor.simd_build(library) == "AVX2"
