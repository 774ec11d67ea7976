"""Errors in a spec in words: the dotted key, what is wrong, and the key that was probably meant."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from typing import Any

from pydantic import ValidationError

Schema = dict[str, Any]


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``" (did you mean 'size'?)"`` where a known word is near, else nothing."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""


def explain_validation(error: ValidationError, schema: Schema) -> list[str]:
    """One clause per problem: dotted key, what is wrong, the right key where one is near."""
    out = []
    for item in error.errors():
        loc = [str(part) for part in item["loc"]]
        key = ".".join(loc)
        if item["type"] == "extra_forbidden":
            known = _keys_at(schema, item["loc"][:-1])
            text = f"unknown key {key!r}{did_you_mean(loc[-1], known)}"
            out.append(text if "mean" in text else f"{text}; known here: {', '.join(known)}")
        elif item["type"] == "missing":
            out.append(f"key {key!r} is missing")
        else:
            message = re.sub(r"^Value error, ", "", item["msg"])
            shown = "" if isinstance(item["input"], dict) else f" (got {item['input']!r})"
            out.append(f"{key}: {message}{shown}" if key else message)
    return out


def _keys_at(schema: Schema, loc: tuple[int | str, ...]) -> list[str]:
    """Keys that the section at ``loc`` knows, read from the JSON schema."""
    node: Schema = schema
    for part in loc:
        choices = [node, *node.get("anyOf", [])]
        choices = [_deref(schema, c) for c in choices]
        if isinstance(part, int):
            node = next((c["items"] for c in choices if "items" in c), {})
        else:
            node = next(
                (c["properties"][part] for c in choices if part in c.get("properties", {})),
                # pydantic adds the name of a union's member to the place; it is the node itself
                node,
            )
    found = [_deref(schema, c) for c in [node, *node.get("anyOf", [])]]
    return [key for c in found for key in c.get("properties", {})]


def _deref(schema: Schema, node: Schema) -> Schema:
    ref = node.get("$ref")
    if ref is None:
        return node
    resolved: Schema = schema["$defs"][ref.rsplit("/", 1)[1]]
    return resolved
