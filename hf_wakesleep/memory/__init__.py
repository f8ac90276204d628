"""The semi-parametric memory: a table of codes under a budget, and what is drawn from it."""
