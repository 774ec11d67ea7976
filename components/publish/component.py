"""The publish stage as a KFP component."""

from kfp.dsl import HTML, Artifact, Input, Output

from components.base import component


@component
def publish(
    spec: str,
    data: str,
    workdir: str,
    mapped: Input[Artifact],
    manifest: Output[Artifact],
    report: Output[HTML],
) -> None:
    """Release the map: overviews, GeoTIFF, STAC item, quick look and report.

    Args:
        spec: The whole run, as the YAML text of a MapSpec.
        data: Folder that the spec's relative paths start from.
        workdir: Folder that takes all results.
        mapped: Manifest of the mapping.
        manifest: What the stage made, from what, and its figures.
        report: The report, one self-contained page.
    """
    import shutil

    from components.stage import output, run_stage

    done = run_stage("publish", spec, data, workdir, [mapped.path], manifest.path)
    shutil.copyfile(output(done, workdir, "report"), report.path)


@component
def refuse(
    spec: str,
    data: str,
    workdir: str,
    gated: Input[Artifact],
    manifest: Output[Artifact],
    report: Output[HTML],
) -> None:
    """Report why the gate refused; nothing is exported or mapped.

    Args:
        spec: The whole run, as the YAML text of a MapSpec.
        data: Folder that the spec's relative paths start from.
        workdir: Folder that takes all results.
        gated: Manifest of the gate.
        manifest: What the stage made, from what, and its figures.
        report: The report, one self-contained page.
    """
    import shutil

    from components.stage import output, run_stage

    done = run_stage("refuse", spec, data, workdir, [gated.path], manifest.path)
    shutil.copyfile(output(done, workdir, "report"), report.path)
