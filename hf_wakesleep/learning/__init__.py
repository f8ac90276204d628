"""Learning: what happens awake and asleep, task after task."""
