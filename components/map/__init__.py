"""The map stage as a KFP component."""
