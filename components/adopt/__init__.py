"""The adopt stage as a KFP component."""
