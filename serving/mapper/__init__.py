"""Mapping on a Ray cluster, with any engine that can infer."""
