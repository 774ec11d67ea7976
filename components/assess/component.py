"""The assess stage as a KFP component."""

from kfp.dsl import Artifact, ClassificationMetrics, Input, Markdown, Metrics, Output

from components.base import component


@component
def assess(
    spec: str,
    data: str,
    workdir: str,
    chips: Input[Artifact],
    pruned: Input[Artifact],
    manifest: Output[Artifact],
    metrics: Output[Metrics],
    confusion: Output[ClassificationMetrics],
    product_confusion: Output[ClassificationMetrics],
    summary: Output[Markdown],
) -> None:
    """Estimate the model's accuracy, and the label product's, on the same samples.

    Args:
        spec: The whole run, as the YAML text of a MapSpec.
        data: Folder that the spec's relative paths start from.
        workdir: Folder that takes all results.
        chips: Manifest of the label stage.
        pruned: Manifest of the prune stage.
        manifest: What the stage made, from what, and its figures.
        metrics: The stage's figures.
        confusion: Confusion matrix of the model, rows mapped, columns reference.
        product_confusion: The same of the label product.
        summary: Accuracy of both, class by class, with intervals.
    """
    import json
    import shutil

    from components.stage import numbers, output, run_stage

    done = run_stage("assess", spec, data, workdir, [chips.path, pruned.path], manifest.path)
    for name, value in numbers(done).items():
        metrics.log_metric(name, value)
    shutil.copyfile(output(done, workdir, "accuracy"), summary.path)
    for name, page in (("map_report", confusion), ("product_report", product_confusion)):
        report = json.loads(output(done, workdir, name).read_text())
        page.log_confusion_matrix([row["name"] for row in report["classes"]], report["matrix"])
