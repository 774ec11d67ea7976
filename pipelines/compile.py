"""Compile the pipeline: ``python -m pipelines.compile OUT.yaml``."""

import sys

from kfp import compiler

from pipelines.land_cover_map import land_cover_map


def main() -> None:
    """Write the compiled pipeline to the file named on the command line."""
    compiler.Compiler().compile(land_cover_map, sys.argv[1])


if __name__ == "__main__":
    main()
