"""KFP components: one folder per stage, each body parses, calls and logs.

The image, and the local environment, have terrafine installed; nothing is installed at run time.
``TERRAFINE_IMAGE`` names the image that compiled pipelines ask for.
"""

import functools
import os

from kfp import dsl

IMAGE = os.environ.get("TERRAFINE_IMAGE", "terrafine:0.1.0")

component = functools.partial(dsl.component, base_image=IMAGE, install_kfp_package=False)
