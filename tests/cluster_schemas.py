"""What the files of cluster/ may say: a misspelled name is an error, at every level.

Kubernetes' own objects, AWS's RunInstances and Google's instances are checked against the descriptions that their
clients ship. KubeRay's part (``ray.io/v1``) is written down here, as far as it is used: no package carries it.
"""

from __future__ import annotations

import copy
import functools
import importlib
import json
from collections.abc import Iterator, Mapping
from importlib import resources
from typing import Any

import click
from jsonschema.protocols import Validator
from jsonschema.validators import Draft202012Validator
from referencing import Registry, Resource

from swamp_ray.config.sections import ExecutionConfig

KUBERNETES = "v1.37.0-local-strict"
CORE = "https://kubernetes.io/api/_definitions.json#/$defs/io.k8s.api.core.v1."
META = "https://kubernetes.io/api/_definitions.json#/$defs/io.k8s.apimachinery.pkg.apis.meta.v1."
# Kubernetes leaves the keys of these mappings open, and nobody else would say that one is misspelled.
OPEN_KEYS: dict[str, set[str]] = {
    "requests": {"cpu", "memory", "nvidia.com/gpu", "storage"},
    "limits": {"cpu", "memory", "nvidia.com/gpu"},
    "nodeSelector": {"cloud.google.com/gke-spot"},
    "labels": {"app.kubernetes.io/part-of", "ray.io/market-type"},
    "matchLabels": {"app.kubernetes.io/part-of", "app.kubernetes.io/name", "batch.kubernetes.io/job-name",
                    "kubernetes.io/metadata.name"},
}


def strict(required: Mapping[str, Any], optional: Mapping[str, Any]) -> dict[str, Any]:
    """An object with these fields and no others."""
    return {"type": "object", "properties": {**required, **optional}, "required": list(required),
            "additionalProperties": False}


TEXT, FLAG, COUNT = {"type": "string"}, {"type": "boolean"}, {"type": "integer", "minimum": 0}
TEXTS = {"type": "object", "additionalProperties": TEXT}
POD, METADATA = {"$ref": f"{CORE}PodTemplateSpec"}, {"$ref": f"{META}ObjectMeta"}
CLUSTER = strict({
    "headGroupSpec": strict({"rayStartParams": TEXTS, "template": POD}, {
        "serviceType": {"enum": ["ClusterIP"]}, "labels": TEXTS}),
    "rayVersion": TEXT,
    "authOptions": strict({"mode": {"enum": ["token", "disabled"]}}, {}),
}, {
    "enableInTreeAutoscaling": FLAG,
    "autoscalerOptions": strict({}, {
        "version": {"enum": ["v1", "v2"]}, "upscalingMode": {"enum": ["Default", "Aggressive", "Conservative"]},
        "idleTimeoutSeconds": COUNT, "securityContext": {"$ref": f"{CORE}SecurityContext"},
        "resources": {"$ref": f"{CORE}ResourceRequirements"}}),
    "workerGroupSpecs": {"type": "array", "items": strict(
        {"groupName": TEXT, "minReplicas": COUNT, "maxReplicas": COUNT, "rayStartParams": TEXTS, "template": POD},
        {"replicas": COUNT, "labels": TEXTS})},
})
JOB = strict({"entrypoint": TEXT, "rayClusterSpec": CLUSTER}, {
    "backoffLimit": COUNT, "shutdownAfterJobFinishes": FLAG, "ttlSecondsAfterFinished": COUNT})
SPECS = {"RayCluster": CLUSTER, "RayJob": JOB}


@functools.cache
def _kubernetes(name: str) -> Any:
    folder = resources.files("kubernetes_validate") / "kubernetes-json-schema" / KUBERNETES
    return json.loads((folder / name).read_text())


@functools.cache
def _validator(kind: str, api: str) -> Validator:
    if kind in SPECS:
        schema = strict({"apiVersion": {"const": "ray.io/v1"}, "kind": {"const": kind}, "metadata": METADATA,
                         "spec": SPECS[kind]}, {})
    else:
        schema = _kubernetes(f"{kind.lower()}-{api.replace('.k8s.io', '').replace('/', '-')}.json")
    registry = Resource.from_contents(_kubernetes("_definitions.json")) @ Registry()
    return Draft202012Validator(schema, registry=registry)


def check_kubernetes(document: Mapping[str, Any]) -> None:
    """Check one Kubernetes object.

    Raises:
        ValueError: It says something that its kind does not know, or misses what it needs.
    """
    missing = {"apiVersion", "kind"} - set(document)
    if missing:
        raise ValueError(f"without {missing}")
    for error in _validator(document["kind"], document["apiVersion"]).iter_errors(document):
        raise ValueError(f"{error.json_path}: {error.message}")
    for key, mapping in _open_mappings(document):
        unknown = set(mapping) - (ray_start_options() if key == "rayStartParams" else OPEN_KEYS[key])
        if unknown:
            raise ValueError(f"{key}: {unknown}")


def _open_mappings(value: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if isinstance(value, list):
        for item in value:
            yield from _open_mappings(item)
    if isinstance(value, dict):
        for key, inner in value.items():
            if key in OPEN_KEYS or key == "rayStartParams":
                yield key, inner
            else:
                yield from _open_mappings(inner)


@functools.cache
def ray_start_options() -> set[str]:
    """Names of the options of ``ray start``, without their dashes."""
    from ray.scripts.scripts import start

    return {name.lstrip("-") for option in start.params if isinstance(option, click.Option) for name in option.opts}


@functools.cache
def _run_instances() -> Any:
    import botocore.session

    return botocore.session.get_session().get_service_model("ec2").operation_model("RunInstances").input_shape


def check_aws_node(node: Mapping[str, Any]) -> None:
    """Check a ``node_config`` against AWS's RunInstances, to which Ray passes it on.

    Raises:
        ValueError: AWS would not know a field, or not take its type.
    """
    from botocore.validate import ParamValidator

    request = {**node, "MinCount": 1, "MaxCount": 1}
    subnets = request.pop("SubnetIds", [])  # Ray's word: it tries them one after the other
    report = ParamValidator().validate({**request, "SubnetId": subnets[0]} if subnets else request, _run_instances())
    if report.has_errors():
        raise ValueError(report.generate_report())


@functools.cache
def _google_schemas() -> Any:
    documents = resources.files("googleapiclient") / "discovery_cache" / "documents"
    return json.loads((documents / "compute.v1.json").read_text())["schemas"]


def check_google_node(node: Mapping[str, Any]) -> None:
    """Check a ``node_config`` against Google's Instance, to which Ray passes it on.

    Raises:
        ValueError: Google would not know a field, or not take its value.
    """
    _check_google(dict(node), {"$ref": "Instance"}, "node_config")


def _check_google(value: Any, schema: Mapping[str, Any], where: str) -> None:
    schema = _google_schemas()[schema["$ref"]] if "$ref" in schema else schema
    kinds = {"object": dict, "array": list, "string": str, "boolean": bool, "integer": int, "number": (int, float)}
    # Google writes 64-bit numbers as text, and takes both.
    if not isinstance(value, (int, str) if "int64" in schema.get("format", "") else kinds[schema["type"]]):
        raise ValueError(f"{where}: {value!r} is no {schema['type']}")
    if "enum" in schema and value not in schema["enum"]:
        raise ValueError(f"{where}: {value!r} is none of {schema['enum']}")
    if isinstance(value, dict):
        known = schema.get("properties", {})
        for key, inner in value.items():
            if key not in known:
                raise ValueError(f"{where}: no field {key}")
            _check_google(inner, known[key], f"{where}.{key}")
    if isinstance(value, list):
        for item in value:
            _check_google(item, schema["items"], where)


def paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where a document has names, at every level."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield (*path, key)
            yield from paths(inner, (*path, key))
    if isinstance(value, list):
        for index, inner in enumerate(value):
            yield from paths(inner, (*path, index))


def renamed(value: Any, path: tuple[Any, ...]) -> Any:
    """A copy with one name misspelled."""
    changed = copy.deepcopy(value)
    inner = changed
    for step in path[:-1]:
        inner = inner[step]
    inner[f"{path[-1]}x"] = inner.pop(path[-1])
    return changed


def launched(autoscaler_config: Any, execution: ExecutionConfig) -> dict[str, int]:
    """The nodes that Ray's autoscaler starts for three workers and an averaging actor of a run, beside a head."""
    from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
    from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
    from ray.autoscaler.v2.schema import AutoscalerInstance
    from ray.autoscaler.v2.utils import ResourceRequestUtil

    messages, common, instances = (
        importlib.import_module(f"ray.core.generated.{name}_pb2") for name in
        ("autoscaler", "common", "instance_manager"))
    types = AutoscalingConfig(autoscaler_config, skip_content_hash=True).get_node_type_configs()
    head_type = autoscaler_config["head_node_type"]
    head = types[head_type]
    node = messages.NodeState(ray_node_type_name=head_type, node_id=b"h", status=messages.NodeStatus.RUNNING,
                              labels=head.labels, total_resources=head.resources, available_resources=head.resources)
    instance = instances.Instance(instance_id="h", instance_type=head_type, status=instances.Instance.RAY_RUNNING,
                                  node_kind=instances.NodeKind.HEAD)
    is_in = common.LabelSelectorOperator.LABEL_OPERATOR_IN

    def request(resources: dict[str, float], labels: dict[str, str]) -> Any:
        return ResourceRequestUtil.make(resources, label_selectors=[
            [(key, is_in, [value]) for key, value in labels.items()]])

    worker = {"CPU": execution.num_cpus, "GPU": 1.0}
    asked = [*[request(worker, execution.labels)] * 3, request({}, execution.stable_labels)]
    reply = ResourceDemandScheduler().schedule(SchedulingRequest(
        disable_launch_config_check=True, node_type_configs=types, max_num_nodes=9,
        resource_requests=ResourceRequestUtil.group_by_count(asked),
        current_instances=[AutoscalerInstance(ray_node=node, im_instance=instance, cloud_instance_id="h")]))
    assert not reply.infeasible_resource_requests
    return {launch.instance_type: launch.count for launch in reply.to_launch}
