"""Triton: its configuration, its model repository, a server to run here, and who is champion."""
