"""What every component has in common: its image, in which terrafine is installed.

Nothing is installed at run time. ``TERRAFINE_IMAGE`` names the image that compiled
pipelines ask for. Not in the package's ``__init__``, because a running step imports the package,
and kfp has no ``dsl.component`` there.
"""

import functools
import os

from kfp import dsl

IMAGE = os.environ.get("TERRAFINE_IMAGE", "terrafine:0.1.0")

component = functools.partial(dsl.component, base_image=IMAGE, install_kfp_package=False)
