"""The publish stage as a KFP component."""
