"""Stages and checkpoints: what is saved, resumed from, and published."""
