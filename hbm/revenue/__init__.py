"""Skewed revenue: most users pay nothing, some pay a lot.

`simulate` makes such users, `arms` reduces them to sufficient statistics, `families` holds the
likelihoods, `model` (with `laplace`, the fast engine) the hierarchy on both parts, `dollars` the
readout, `study` the proof.
"""
