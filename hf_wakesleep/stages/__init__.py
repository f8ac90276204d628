"""Stages and checkpoints: what is saved, gone on from, and published."""
