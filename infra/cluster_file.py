"""What Ray's own validator lets pass in a cluster file, and what would then fail on rented machines, or stand open.

    python -m infra.cluster_file ray_cluster.yaml

Nothing here touches a cloud.
"""

import re
import sys
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import version
from typing import Any

from infd.errors import ConfigError

Config = Mapping[str, Any]

PROVIDER_KEYS = {"type", "region", "availability_zone", "cache_stopped_nodes", "use_internal_ips", "security_group",
                 "cloudwatch"}
NODE_CONFIG_KEYS = {"InstanceType", "ImageId", "IamInstanceProfile", "InstanceMarketOptions", "BlockDeviceMappings",
                    "MetadataOptions", "SubnetIds", "SecurityGroupIds", "KeyName", "TagSpecifications", "Placement"}
INSTANCES = {"m6i.large": (2, 0), "m6i.xlarge": (4, 0), "m6i.2xlarge": (8, 0), "m6i.4xlarge": (16, 0),
             "c6i.4xlarge": (16, 0), "c6i.8xlarge": (32, 0), "c6i.16xlarge": (64, 0), "c6i.32xlarge": (128, 0),
             "g5.xlarge": (4, 1), "g5.12xlarge": (48, 4), "g5.48xlarge": (192, 8), "g6e.12xlarge": (48, 4),
             "p4d.24xlarge": (96, 8), "p4de.24xlarge": (96, 8), "p5.48xlarge": (192, 8)}
"""vCPUs and GPUs of an instance type, from Amazon's tables; a type that you use belongs here."""
TOKEN_PATH = "/home/ray/.ray/auth_token"
SECRETS = {
    "an access key": re.compile(r"\b(AKIA|ASIA)[A-Z0-9]{16}\b"),
    "a secret": re.compile(r"(?i)(secret|password|passwd|token)\w*\s*[=:]\s*(?![/~]|token\b|required\b)\S+"),
    "a private key": re.compile(r"PRIVATE KEY"),
    "an address": re.compile(r"\b(?!127\.0\.0\.1\b)(\d{1,3}\.){3}\d{1,3}\b"),
    "an account number": re.compile(r"\b\d{12}\b"),
}


def check(config: Config, *, ray_version: str) -> list[str]:
    """What is wrong with a cluster file (as read from YAML), one line a finding; empty where nothing is.

    It expects a file that Ray's `prepare_config` and `validate_config` accept, and looks at what they do not.
    """
    looks: list[Callable[[Config], Iterator[str]]] = [
        check_provider, check_types, lambda one: check_images(one, ray_version=ray_version), check_head_command,
        check_worker_command, check_region, check_token, check_setup, check_secrets]
    return [finding for look in looks for finding in look(config)]


def check_provider(config: Config) -> Iterator[str]:
    for key in sorted(config["provider"].keys() - PROVIDER_KEYS):
        yield f"provider.{key}: not a key that Ray reads for AWS; expected one of {sorted(PROVIDER_KEYS)}"
    if not config.get("auth", {}).get("ssh_user"):
        yield "auth.ssh_user: missing; Ray cannot log in; set the user of the machine image"


def check_types(config: Config) -> Iterator[str]:
    """Counts, machine settings, and resources that must be those of the machine."""
    for name, kind in config["available_node_types"].items():
        where, node = f"available_node_types.{name}", kind.get("node_config", {})
        low, high = kind.get("min_workers", 0), kind.get("max_workers", 0)
        if low > high:
            yield f"{where}: min_workers {low} is above max_workers {high}"
        for key in sorted(node.keys() - NODE_CONFIG_KEYS):
            yield f"{where}.node_config.{key}: not one of {sorted(NODE_CONFIG_KEYS)}"
        for key in ("ImageId", "IamInstanceProfile"):
            if key not in node:
                yield f"{where}.node_config.{key}: missing; Ray's default image is too old, and keys do not belong here"
        yield from check_resources(where, node.get("InstanceType"), kind.get("resources", {}),
                                   head=name == config["head_node_type"])


def check_resources(where: str, instance: str | None, resources: Config, *, head: bool) -> Iterator[str]:
    if instance not in INSTANCES:
        yield f"{where}.node_config.InstanceType: {instance} is not known; add its vCPUs and GPUs to INSTANCES"
        return
    cpus, gpus = INSTANCES[instance]
    expected = {"CPU": 0 if head else cpus, "GPU": gpus}
    found = {key: resources.get(key, 0 if key == "GPU" else None) for key in expected}
    if found != expected:
        why = "tasks on the head starve the jobs' drivers" if head else f"a {instance} has these"
        yield f"{where}.resources: {found}; expected {expected}, because {why}"


def check_images(config: Config, *, ray_version: str) -> Iterator[str]:
    """One pinned image for all; its GPU form where there are GPUs, and only there."""
    expected, docker = f"rayproject/ray:{ray_version}-py311", config.get("docker", {})
    places = {f"docker.{key}": docker[key] for key in ("image", "head_image", "worker_image") if key in docker}
    if not places:
        yield "docker.image: missing; without it every node has the Ray of its machine image"
    for name, kind in config["available_node_types"].items():
        own = kind.get("docker", {})
        image = own.get("worker_image", docker.get("worker_image", docker.get("image")))
        wanted = expected + ("-gpu" if kind.get("resources", {}).get("GPU") else "")
        if image != wanted and (image in own.values() or wanted != expected):
            yield f"available_node_types.{name}.docker.worker_image: {image}; expected {wanted}"
    for place, image in places.items():
        if image != expected:
            yield f"{place}: {image}; expected {expected}, the version in constraints.txt"


def start_command(config: Config, key: str) -> str:
    """The line of `key` that starts Ray; empty where there is none."""
    return next((line for line in config.get(key, []) if "ray start" in line), "")


def exports(config: Config, key: str) -> list[str]:
    """NAME=VALUE words in front of `ray start` in the line of `key` that starts Ray."""
    return start_command(config, key).partition("ray start")[0].replace(";", " ").split()


def check_head_command(config: Config) -> Iterator[str]:
    line = start_command(config, "head_start_ray_commands").split()
    if "INFD_AUTOSCALING=1" not in exports(config, "head_start_ray_commands"):
        yield ("head_start_ray_commands: no INFD_AUTOSCALING=1 before `ray start`; jobs would refuse to run while the "
               "cluster has no workers yet")
    for word, why in (("--head", "nothing would lead the cluster"),
                      ("--autoscaling-config=~/ray_bootstrap_config.yaml", "no worker would ever start"),
                      ("--dashboard-host=127.0.0.1", "who reaches the dashboard runs any code"),
                      ("--disable-usage-stats", "usage would be reported")):
        if word not in line:
            yield f"head_start_ray_commands: no {word}; {why}"
    if any(word.startswith("--dashboard-host=") and word != "--dashboard-host=127.0.0.1" for word in line):
        yield "head_start_ray_commands: --dashboard-host is given twice or is not 127.0.0.1"


def check_worker_command(config: Config) -> Iterator[str]:
    head, line = (start_command(config, f"{who}_start_ray_commands").split() for who in ("head", "worker"))
    port = next((word.partition("=")[2] for word in head if word.startswith("--port=")), "6379")
    if "--head" in line:
        yield "worker_start_ray_commands: --head; every worker would be a cluster of its own"
    if f"--address=$RAY_HEAD_IP:{port}" not in line:
        yield f"worker_start_ray_commands: no --address=$RAY_HEAD_IP:{port}; that is where the head listens"


def check_region(config: Config) -> Iterator[str]:
    """Jobs read the bucket in the region that their node's environment names."""
    wanted = f"AWS_DEFAULT_REGION={config['provider'].get('region')}"
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        if wanted not in exports(config, key):
            yield f"{key}: no {wanted} before `ray start`; jobs would look for the bucket in another region"


def check_token(config: Config) -> Iterator[str]:
    """Every node must ask for the token and have it; a command's exports hold for that command alone."""
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        before = exports(config, key)
        for word in ("RAY_AUTH_MODE=token", f"RAY_AUTH_TOKEN_PATH={TOKEN_PATH}"):
            if word not in before:
                yield f"{key}: no {word} before `ray start`; the node would be open, or refused by the others"
    if not config.get("file_mounts", {}).get(TOKEN_PATH):
        yield f"file_mounts: nothing at {TOKEN_PATH}; the nodes would have no token"


def check_setup(config: Config) -> Iterator[str]:
    if not any("-c constraints.txt" in line and "pyproject.toml" in line for line in config.get("setup_commands", [])):
        yield "setup_commands: do not install pyproject.toml with -c constraints.txt; other versions than the tested"
    if "." not in config.get("file_mounts", {}).values():
        yield "file_mounts: the checkout (.) is not among them; setup_commands find nothing to install"


def check_secrets(config: Config) -> Iterator[str]:
    for place, text in strings(config):
        for what, pattern in SECRETS.items():
            if pattern.search(text):
                yield f"{place}: holds {what}; cluster files are shared: use a role, a file mount or a name instead"


def strings(value: Any, place: str = "") -> Iterator[tuple[str, str]]:
    """(dotted place, `key: value`) of every leaf."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from strings(inner, f"{place}.{key}".lstrip("."))
    elif isinstance(value, (list, tuple)):
        for index, inner in enumerate(value):
            yield from strings(inner, f"{place}[{index}]")
    else:
        yield place, f"{place.rpartition('.')[2]}: {value}"


def load(path: str) -> dict[str, Any]:
    """The file as it stands, once Ray's own two checks have accepted it. Raises ConfigError with their message."""
    import copy

    import yaml
    from ray.autoscaler._private.util import prepare_config, validate_config

    try:
        with open(path) as file:
            config = yaml.safe_load(file)
        validate_config(prepare_config(copy.deepcopy(config)))       # in this order: prepare fills what validate wants
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: cannot be read ({error})") from error
    except Exception as error:                                       # jsonschema's, and Ray's own kinds
        raise ConfigError(f"{path}: Ray refuses it ({getattr(error, 'message', error)})") from error
    return config


def main(argv: list[str] | None = None) -> int:
    """Exit 0 where the file is good; 1 with the findings; 2 on usage."""
    words = sys.argv[1:] if argv is None else argv
    if len(words) != 1 or words[0].startswith("-"):
        print(__doc__, file=sys.stderr if words not in (["-h"], ["--help"]) else sys.stdout)
        return 0 if words in (["-h"], ["--help"]) else 2
    try:
        findings = check(load(words[0]), ray_version=version("ray"))
    except ConfigError as error:
        findings = [str(error)]
    for finding in findings:
        print(finding, file=sys.stderr)
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
