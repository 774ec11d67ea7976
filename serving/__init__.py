"""Serving engines around the domain: Triton and Ray come here."""
