"""The train stage as a KFP component."""
