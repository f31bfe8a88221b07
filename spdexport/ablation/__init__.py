"""Ablation: what each component of a file with run-time masks does to the outputs."""
