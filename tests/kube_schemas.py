"""Kubernetes resources against the schemas of the API server and of the custom resources."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

VERSION = "1.36"
CRDS = Path(__file__).parents[2] / "shared" / "crds"
Resource = dict[str, Any]


class _NoKeyTwice(yaml.CSafeLoader):
    """As the API server reads YAML: a key that is there twice is an error."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = {key for key in keys if keys.count(key) > 1}
        if twice:
            raise yaml.constructor.ConstructorError(
                None, None, f"key {sorted(twice)} twice", node.start_mark
            )
        return super().construct_mapping(node, deep)


def read_all(text: str) -> list[Resource]:
    """Every resource of a YAML stream."""
    return [found for found in yaml.load_all(text, Loader=_NoKeyTwice) if found is not None]


def schema_complaints(resource: Mapping[str, Any]) -> Iterator[str]:
    """What the API server would refuse or drop; nothing is said of custom resources without
    ../shared/crds."""
    return iter(_complaints(json.dumps(resource, default=str)))


@cache
def _complaints(text: str) -> list[str]:
    resource = json.loads(text)
    return list(_found(resource))


def _found(resource: Resource) -> Iterator[str]:
    group, _, version = resource["apiVersion"].rpartition("/")
    if ("." in group and not group.endswith(".k8s.io")) or group == "kueue.x-k8s.io":
        yield from _custom_complaints(resource, group, version)
        return
    try:
        kubernetes_validate.validate(resource, VERSION, strict=True)
    except kubernetes_validate.ValidationError as error:
        yield f"schema: {'.'.join(map(str, error.path))}: {error.message}"
    except kubernetes_validate.SchemaNotFoundError as error:
        yield f"schema: no such kind in {VERSION}: {error}"


def require_crds() -> None:
    """Skip where the definitions of the custom resources are not there."""
    if not CRDS.is_dir():
        pytest.skip("../shared/crds is not there: custom resources are not held against a schema")


def _custom_complaints(resource: Mapping[str, Any], group: str, version: str) -> Iterator[str]:
    if not CRDS.is_dir():
        return
    found = _definition(group, resource["kind"])
    versions = {one["name"]: one for one in found["spec"]["versions"] if one["served"]}
    if version not in versions:
        yield f"schema: {group}/{version} is not served"
        return
    validator = _validator(group, resource["kind"], version)
    for error in validator.iter_errors(resource):
        yield f"schema: {'.'.join(map(str, error.absolute_path))}: {error.message[:200]}"
    scoped = "namespace" in resource["metadata"]
    if scoped != (found["spec"]["scope"] == "Namespaced"):
        yield f"scope: {resource['kind']} is {found['spec']['scope']}"


@cache
def _definition(group: str, kind: str) -> Resource:
    # only files of the group are read: those of Ray hold over a megabyte each
    for path in CRDS.glob(f"{group}_*.yaml"):
        with path.open("rb") as file:
            for found in yaml.load_all(file, Loader=yaml.CSafeLoader):
                if found and found["kind"] == "CustomResourceDefinition":
                    if found["spec"]["names"]["kind"] == kind:
                        return dict(found)
                    break
    raise AssertionError(f"../shared/crds defines no {kind} of {group}")


@cache
def _validator(group: str, kind: str, version: str) -> jsonschema.Draft202012Validator:
    served = _definition(group, kind)["spec"]["versions"]
    schema = next(one for one in served if one["name"] == version)["schema"]["openAPIV3Schema"]
    return jsonschema.Draft202012Validator(_strict(schema))


def _strict(schema: Any) -> Any:
    """The same, but with a field that it does not name refused, as server-side apply does."""
    if isinstance(schema, list):
        return [_strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: _strict(part) for key, part in schema.items()}
    if schema.get("x-kubernetes-int-or-string"):
        return {key: part for key, part in made.items() if key not in {"type", "anyOf"}}
    keeps = schema.get("x-kubernetes-preserve-unknown-fields")
    if isinstance(schema.get("properties"), dict) and schema.get("type") == "object" and not keeps:
        made.setdefault("additionalProperties", False)
        made["properties"].setdefault("apiVersion", {})
        made["properties"].setdefault("kind", {})
    # the server knows metadata by itself
    if set(schema) - {"description"} == {"type"} and schema["type"] == "object":
        made.pop("additionalProperties", None)
    return made
