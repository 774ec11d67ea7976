"""The prepare step as a KFP component."""
