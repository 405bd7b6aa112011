"""ray_cluster.yaml passes Ray's validator and our own checks; and each of those checks can fail."""

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from infd.errors import ConfigError
from infra import cluster_file

ROOT = Path(__file__).resolve().parents[2]
PATH = ROOT / "ray_cluster.yaml"


@pytest.fixture(scope="module")
def config() -> dict[str, Any]:
    return cluster_file.load(str(PATH))


@pytest.fixture(scope="module")
def ray_version() -> str:
    return re.findall(r"^ray==(\S+)$", (ROOT / "constraints.txt").read_text(), flags=re.M)[0]


def test_law_the_cluster_file_is_good(config, ray_version):
    assert cluster_file.check(config, ray_version=ray_version) == []


def test_law_what_a_user_must_edit_is_marked(config):
    machines = [kind["node_config"] for kind in config["available_node_types"].values()]
    assert all("EDIT-ME" in machine["ImageId"] for machine in machines)
    assert all("EDIT-ME" in machine["IamInstanceProfile"]["Name"] for machine in machines)


def test_law_kinds_of_machines(config):
    head, cpu, gpu = (config["available_node_types"][name] for name in ("head", "cpu", "gpu"))
    assert head["resources"] == {"CPU": 0}
    assert cpu["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"} and cpu["min_workers"] == 0
    assert gpu["resources"]["GPU"] > 0 and gpu["min_workers"] == 0


def types(config: dict[str, Any], name: str) -> dict[str, Any]:
    return config["available_node_types"][name]


def replace_in(config: dict[str, Any], key: str, old: str, new: str) -> None:
    assert any(old in line for line in config[key]), "the mutation must change something"
    config[key] = [line.replace(old, new) for line in config[key]]


HEAD, WORKER = "head_start_ray_commands", "worker_start_ray_commands"
MUTATIONS: dict[str, tuple[str, Callable[[dict[str, Any]], object]]] = {
    "unknown provider key": ("provider.regoin", lambda c: c["provider"].update(regoin="x")),
    "no ssh user": ("auth.ssh_user", lambda c: c["auth"].pop("ssh_user")),
    "misspelt machine key": ("InstanceTyp:", lambda c: types(c, "cpu")["node_config"].update(InstanceTyp="x")),
    "no machine image": ("ImageId", lambda c: types(c, "gpu")["node_config"].pop("ImageId")),
    "no role": ("IamInstanceProfile", lambda c: types(c, "cpu")["node_config"].pop("IamInstanceProfile")),
    "min above max": ("min_workers 1 is above", lambda c: types(c, "gpu").update(min_workers=1, max_workers=0)),
    "unknown machine": ("InstanceType: x9", lambda c: types(c, "cpu")["node_config"].update(InstanceType="x9")),
    "CPUs that the machine lacks": ("cpu.resources", lambda c: types(c, "cpu")["resources"].update(CPU=64)),
    "GPUs that the machine lacks": ("gpu.resources", lambda c: types(c, "gpu")["resources"].update(GPU=4)),
    "GPUs on a CPU machine": ("cpu.resources", lambda c: types(c, "cpu")["resources"].update(GPU=1)),
    "tasks on the head": ("head.resources", lambda c: types(c, "head")["resources"].update(CPU=8)),
    "image of another Ray": ("docker.image", lambda c: c["docker"].update(image="rayproject/ray:2.59.0-py311")),
    "unpinned image": ("docker.image", lambda c: c["docker"].update(image="rayproject/ray:latest")),
    "no image": ("docker.image: missing", lambda c: c.pop("docker")),
    "worker image of another Ray": ("gpu.docker", lambda c: types(c, "gpu").update(
        docker={"worker_image": "rayproject/ray:2.59.0-py311-gpu"})),
    "CPU image on GPUs": ("gpu.docker", lambda c: types(c, "gpu").pop("docker")),
    "GPU image on CPUs": ("cpu.docker", lambda c: types(c, "cpu").update(
        docker={"worker_image": "rayproject/ray:2.60.0-py311-gpu"})),
    "no --head": ("no --head", lambda c: replace_in(c, HEAD, "--head ", "")),
    "no autoscaling": ("--autoscaling-config", lambda c: replace_in(c, HEAD, "--autoscaling-config", "--x")),
    "head in another region": (f"{HEAD}: no AWS_DEFAULT_REGION=us-east-1", lambda c: replace_in(
        c, HEAD, "AWS_DEFAULT_REGION=us-east-1", "AWS_DEFAULT_REGION=eu-west-1")),
    "workers without a region": (f"{WORKER}: no AWS_DEFAULT_REGION=eu-west-1",
                                 lambda c: c["provider"].update(region="eu-west-1")),
    "jobs that do not wait for workers": (f"{HEAD}: no INFD_AUTOSCALING=1", lambda c: replace_in(
        c, HEAD, "INFD_AUTOSCALING=1", "INFD_AUTOSCALING=0")),
    "open dashboard": ("--dashboard-host", lambda c: replace_in(c, HEAD, "host=127.0.0.1", "host=0.0.0.0")),
    "dashboard host given twice": ("given twice", lambda c: replace_in(
        c, HEAD, "--head", "--head --dashboard-host=::")),
    "usage reported": ("--disable-usage-stats", lambda c: replace_in(c, HEAD, "--disable-usage-stats", "")),
    "worker as a head": ("worker_start_ray_commands: --head", lambda c: replace_in(
        c, WORKER, "ray start", "ray start --head")),
    "ports that differ": ("no --address=$RAY_HEAD_IP:6380", lambda c: replace_in(c, HEAD, "port=6379", "port=6380")),
    "head without a token": (f"{HEAD}: no RAY_AUTH_MODE", lambda c: replace_in(
        c, HEAD, "RAY_AUTH_MODE=token", "")),
    "worker with another mode": (f"{WORKER}: no RAY_AUTH_MODE", lambda c: replace_in(
        c, WORKER, "RAY_AUTH_MODE=token", "RAY_AUTH_MODE=disabled")),
    "token not distributed": ("file_mounts: nothing", lambda c: c["file_mounts"].pop(cluster_file.TOKEN_PATH)),
    "checkout not distributed": ("checkout", lambda c: c["file_mounts"].pop("/home/ray/infd")),
    "versions left open": ("setup_commands", lambda c: replace_in(c, "setup_commands", "-c constraints.txt", "")),
    "access key": ("an access key", lambda c: c["setup_commands"].append("export A=AKIA" + "Q" * 16)),
    "secret": ("a secret", lambda c: c["setup_commands"].append("export AWS_SECRET_ACCESS_KEY=abc")),
    "token in the file": ("a secret", lambda c: replace_in(
        c, HEAD, "RAY_AUTH_MODE", "RAY_AUTH_TOKEN=abcdef RAY_AUTH_MODE")),
    "private key": ("a private key", lambda c: c["auth"].update(ssh_private_key="-----BEGIN PRIVATE KEY-----")),
    "address": ("an address", lambda c: replace_in(c, WORKER, "$RAY_HEAD_IP", "10.0.0.1")),
    "account": ("an account number", lambda c: types(c, "cpu")["node_config"].update(
        IamInstanceProfile={"Arn": "arn:aws:iam::123456789012:instance-profile/x"})),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_error_a_check_names_what_is_wrong(config, ray_version, name):
    expected, mutate = MUTATIONS[name]
    broken = copy.deepcopy(config)
    mutate(broken)
    findings = cluster_file.check(broken, ray_version=ray_version)
    assert any(expected in finding for finding in findings), findings


def test_error_what_ray_itself_refuses(tmp_path):
    path = tmp_path / "cluster.yaml"
    path.write_text(PATH.read_text().replace("max_workers: 12", "max_worker: 12"))
    with pytest.raises(ConfigError, match="max_worker"):
        cluster_file.load(str(path))


def test_error_the_command_exits_1_and_says_why(tmp_path, capsys):
    assert cluster_file.main([str(PATH)]) == 0
    path = tmp_path / "cluster.yaml"
    path.write_text(PATH.read_text().replace("--dashboard-host=127.0.0.1", "--dashboard-host=0.0.0.0"))
    assert cluster_file.main([str(path)]) == 1
    assert "--dashboard-host=127.0.0.1" in capsys.readouterr().err
    assert cluster_file.main([]) == 2
