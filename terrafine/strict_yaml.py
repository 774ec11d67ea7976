"""YAML as plain values, without PyYAML's silence about a key that is written twice."""

from __future__ import annotations

from typing import Any

import yaml


class _Strict(yaml.SafeLoader):
    pass


def _mapping(loader: _Strict, node: yaml.MappingNode) -> dict[Any, Any]:
    # before construct_mapping lets `<<` bring in the keys that the node's own ones may replace
    seen: set[str] = set()
    for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
        if key.value in seen:
            raise yaml.constructor.ConstructorError(
                None, None, f"key {key.value!r} is there twice; keep one", key.start_mark
            )
        seen.add(key.value)
    return loader.construct_mapping(node, deep=True)


_Strict.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def load_yaml(text: str) -> Any:
    """The document in ``text``; yaml.YAMLError also for a key that a mapping has twice."""
    return yaml.load(text, Loader=_Strict)
