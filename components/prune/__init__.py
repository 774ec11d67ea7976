"""The prune stage as a KFP component."""
