"""KFP components: one folder per stage, each body parses, calls and logs."""
