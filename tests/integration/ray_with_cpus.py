"""``terrafine`` on a Ray with so many processors: ``ray_with_cpus.py CPUS ARGUMENTS...``."""

from __future__ import annotations

import sys

from serving.ray_cluster import connected
from terrafine.cli.main import main

if __name__ == "__main__":
    cpus = int(sys.argv.pop(1))
    with connected(cpus=cpus):
        main()
