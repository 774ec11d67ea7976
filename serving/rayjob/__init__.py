"""A heavy stage on a cluster: one RayJob, launched and followed from the pipeline's small pod."""
