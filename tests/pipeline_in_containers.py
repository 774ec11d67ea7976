"""Run the national_map pipeline through kfp's DockerRunner: FOLDER RUN-ARGUMENTS-AS-JSON.

A process of its own: the image's name is read when components are imported.
"""

import json
import sys
from pathlib import Path

from kfp import local

from pipelines.national_map import national_map


def main() -> None:
    """The folder holds spec.yaml and its data, and is all that the containers see."""
    folder, arguments = Path(sys.argv[1]), json.loads(sys.argv[2])
    local.init(
        runner=local.DockerRunner(network_mode="none", entrypoint=[], **arguments),
        pipeline_root=str(folder),
        raise_on_error=True,
    )
    national_map(
        spec=(folder / "spec.yaml").read_text(), data=str(folder), workdir=str(folder / "run")
    )


if __name__ == "__main__":
    main()
