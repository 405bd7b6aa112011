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
from infd.errors import StorageError
from jobs import doctor as job
from pipelines import doctor, doctor_servers
from pipelines.findings import Finding, can_run, screen


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch, tmp_path):
    for name in ("AWS_ENDPOINT_URL", "RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH",
                 "RAY_AUTH_MODE", "MLFLOW_TRACKING_URI", "INFD_BUCKET"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("INFD_WEIGHTS", str(tmp_path / "weights"))


@pytest.fixture
def closed_address() -> str:
    """A loopback address on which nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"127.0.0.1:{server.getsockname()[1]}"


class Answers(http.server.BaseHTTPRequestHandler):
    """Answers /version, to who has the token /api/version, and refuses the rest as a store does without credentials."""

    def do_GET(self) -> None:
        known = self.path == "/version" or (
            self.path == "/api/version" and self.headers["Authorization"] == "Bearer sesame")
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
    assert "the main job can run (without lpips-vgg, lpips-alex: presets that use it stop" in lines[-1]


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
    lines = screen(findings, width=100).splitlines()
    assert max(map(len, lines)) <= 100
    assert lines[0].startswith("warn  thing          word")
    assert any(line.startswith(" " * 21 + "→ do this") for line in lines)
    assert lines[-1] == "1 ok, 1 warn, 0 FAIL: the main job can run"


def test_law_conditional_writes_are_tried_and_the_probe_is_gone(tmp_path):
    findings = list(doctor_servers.conditional_writes(str(tmp_path)))
    assert [(one.name, one.mark) for one in findings] == [("If-None-Match", "ok"), ("If-Match", "ok")]
    assert list(storage.list_objects(str(tmp_path))) == []


def test_error_store_that_ignores_the_condition_fails(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "put_if_absent", storage.put_atomic)
    monkeypatch.setattr(storage, "replace_if_unchanged", lambda uri, data, etag: storage.put_atomic(uri, data))
    absent, unchanged = doctor_servers.conditional_writes(str(tmp_path))
    assert absent.mark == "FAIL" and "accepts a second write" in absent.found
    assert unchanged.mark == "FAIL" and "accepts a write over a version that is not there" in unchanged.found
    assert list(storage.list_objects(str(tmp_path))) == []


def test_error_conditional_write_that_breaks_fails_under_its_name(tmp_path, monkeypatch):
    def broken(uri: str, data: bytes, etag: str | None) -> None:
        raise StorageError("501 NotImplemented")

    monkeypatch.setattr(storage, "replace_if_unchanged", broken)
    absent, unchanged = doctor_servers.conditional_writes(str(tmp_path))
    assert absent.mark == "ok"
    assert (unchanged.name, unchanged.mark) == ("If-Match", "FAIL") and "501" in unchanged.found
    assert list(storage.list_objects(str(tmp_path))) == []


def test_law_store_without_a_bucket_says_how(server, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", server)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "nothing")
    store, condition = doctor_servers.object_store("")
    assert (store.mark, condition.mark) == ("ok", "warn")
    assert "--bucket" in condition.advice


@pytest.mark.slow
def test_law_the_bucket_of_the_local_stack_is_tried_unnamed(stack, monkeypatch):
    for name in ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, stack.env[name])
    findings = list(doctor_servers.object_store(""))
    assert [(one.name, one.mark) for one in findings] == [
        ("object store", "ok"), ("If-None-Match", "ok"), ("If-Match", "ok")]
    assert findings[1].found == "honoured in s3://infd"


def test_law_no_bucket_of_a_store_elsewhere_is_guessed(monkeypatch):
    monkeypatch.setattr(storage, "list_objects", lambda uri: iter(()))
    assert doctor_servers.stack_bucket("http://127.0.0.1:8333") == doctor_servers.stack_bucket("http://localhost") == "infd"
    assert doctor_servers.stack_bucket("https://s3.example.com") == doctor_servers.stack_bucket("http://10.0.0.7:8333") == ""


def test_law_a_missing_program_of_the_local_store_is_warned_of(monkeypatch):
    monkeypatch.setattr(doctor_servers.shutil, "which", lambda name, path=None: None)
    assert [(one.name, one.mark) for one in doctor_servers.store_program()] == [("weed", "warn")]
    monkeypatch.setenv("AWS_ENDPOINT_URL", "https://s3.example.com")
    assert list(doctor_servers.store_program()) == []


def test_law_mlflow_version_is_shown_and_a_dead_server_warned_of(server, closed_address, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    assert [finding.found for finding in doctor_servers.mlflow_server()] == [f"{server} answers, version 3.17.2"]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://{closed_address}")
    assert [finding.mark for finding in doctor_servers.mlflow_server()] == ["warn"]


@pytest.mark.parametrize(("host", "flagged"), [("127.0.0.1", False), ("0.0.0.0", True)])
def test_law_a_dashboard_open_to_others_is_flagged(monkeypatch, host, flagged):
    with socket.create_server((host, 0)) as listening:
        port = listening.getsockname()[1]
        monkeypatch.setattr(doctor_servers, "dashboard_ports", lambda: {port})
        findings = list(doctor_servers.dashboard())
    assert [finding.mark for finding in findings] == (["warn"] if flagged else ["ok"])
    assert str(port) in findings[0].found
    assert ("--dashboard-host=127.0.0.1" in findings[0].advice) is flagged


def test_law_dashboard_with_a_refusing_address_is_warned_of(server, monkeypatch):
    monkeypatch.setattr(doctor_servers, "dashboard_ports", set)
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", server)
    findings = list(doctor_servers.dashboard())
    assert [finding.mark for finding in findings] == ["warn"] and "HTTP 403" in findings[0].found


@pytest.mark.parametrize(("token", "mark"), [("sesame", "ok"), ("other", "warn")])
def test_law_the_token_of_a_dashboard_may_stand_in_a_file(server, tmp_path, monkeypatch, token, mark):
    monkeypatch.setattr(doctor_servers, "dashboard_ports", set)
    (tmp_path / "token").write_text(f"{token}\n")
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", server)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    assert [finding.mark for finding in doctor_servers.dashboard()] == [mark]


def test_law_a_lost_token_file_is_named(server, tmp_path, monkeypatch):
    monkeypatch.setattr(doctor_servers, "dashboard_ports", set)
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", server)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "gone"))
    lost, refused = doctor_servers.dashboard()
    assert lost.mark == "warn" and str(tmp_path / "gone") in lost.found and "HTTP 403" in refused.found


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
    assert not can_run(failed)


def test_law_the_level_of_a_build_is_told_by_its_instructions(tmp_path):
    library = tmp_path / "lib.so"
    library.write_bytes(b"\x66\x0f\x38\x00" * 5000)
    assert doctor.simd_build(library) == "SSE4"
    library.write_bytes(b"\xc5\xfd\x6f\x00" * 5000)
    assert doctor.simd_build(library) == "AVX2"
