"""The semi-parametric memory: a table of codes within a budget, its files, and the sampling of replay."""
