"""The label stage as a KFP component."""
