"""The STAC collection of a map that is published shard by shard."""

from __future__ import annotations

from collections.abc import Sequence

import pystac
from pystac import ItemAssetDefinition

from terrafine.legend import Legend
from terrafine.publish.stac import classes


def collection(
    *, identifier: str, title: str, items: Sequence[pystac.Item], legend: Legend
) -> pystac.Collection:
    """The collection around ``items``: extent in space and time, CRSs, resolutions and classes.

    Its items are not linked: the caller knows where they lie.
    """
    boxes = [item.bbox for item in items if item.bbox is not None]
    west, south = (min(box[i] for box in boxes) for i in (0, 1))
    east, north = (max(box[i] for box in boxes) for i in (2, 3))
    times = [item.datetime for item in items if item.datetime is not None]
    made = pystac.Collection(
        id=identifier,
        title=title,
        description=f"Land cover with {len(legend.classes)} classes: {', '.join(legend.names)}.",
        extent=pystac.Extent(
            # the whole first, as STAC wants it
            pystac.SpatialExtent([[west, south, east, north]]),
            pystac.TemporalExtent([[min(times), max(times)]]),
        ),
        license="other",
        summaries=pystac.Summaries(
            {
                "proj:code": sorted({str(item.properties.get("proj:code")) for item in items}),
                "gsd": sorted(
                    {
                        round(asset.extra_fields["gsd"], 3)
                        for item in items
                        for asset in item.assets.values()
                        if "gsd" in asset.extra_fields
                    }
                ),
            }
        ),
    )
    made.item_assets = {
        name: ItemAssetDefinition.create(
            title=asset.title,
            description=None,
            media_type=asset.media_type,
            roles=asset.roles,
            extra_fields={"classification:classes": [c.to_dict() for c in classes(legend)]}
            if name == "landcover"
            else {},
        )
        for name, asset in items[0].assets.items()
    }
    return made
