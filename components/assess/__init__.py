"""The assess stage as a KFP component."""
