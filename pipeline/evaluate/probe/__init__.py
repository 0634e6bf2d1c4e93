"""Probes: solvers over frozen features. Nothing in here imports DeepSpeed, or knows where features come from."""
