"""The gate stage as a KFP component."""
