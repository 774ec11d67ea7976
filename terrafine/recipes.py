"""Recipes: named sets of settings that a spec starts from.

The defaults of every section are those of Dong et al. 2020, so that "dong2020" changes nothing.
"terrafine" is ours, where a spec starts from unless it says otherwise: docs/accuracy.md says what
it brings. A key that the spec sets itself always wins.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

Settings = Mapping[str, Any]

DEFAULT: Final = "terrafine"
RECIPES: Final[Mapping[str, Settings]] = {
    "dong2020": {},
    "terrafine": {
        # instance norm sees one window, and takes from it what tells its classes apart
        "model": {"first_norm": "batch"},
        "training": {
            # a label of 10 m speaks of the 3 x 3 pixels of 3 m around, not of each of them
            "label_window": 3,
            # where it is known how often the product takes one class for another
            "label_confusion": "published",
            "ema": 0.99,
            # the paper's 3 on impervious finds more of it and costs overall accuracy
            "class_weights": {},
        },
    },
}


def with_recipe(spec: Settings) -> dict[str, Any]:
    """``spec`` over the settings of the recipe it names; an unknown name changes nothing."""
    name = spec.get("recipe", DEFAULT)
    return overlaid(RECIPES.get(name, {}) if isinstance(name, str) else {}, spec)


def overlaid(below: Settings, above: Settings) -> dict[str, Any]:
    """Two nested mappings as one; where both have a key, ``above`` wins."""
    merged = dict(below)
    for key, value in above.items():
        under = merged.get(key)
        both = isinstance(value, Mapping) and isinstance(under, Mapping)
        merged[key] = overlaid(under, value) if both else value  # type: ignore[arg-type]
    return merged
