"""The export stage as a KFP component."""
