"""Stopwatch: the seconds of each phase of a task, saved so that a resumed run adds to them."""

import json
import time
from pathlib import Path

SECONDS_NAME = "seconds.json"


class Stopwatch:
    """Counts the seconds of a task by phase, beginning with the phase awake.

    A resumed run repeats the steps after the last checkpoint, but their seconds count only once.
    """

    def __init__(self):
        self._seconds = {"awake": 0.0, "napping": 0.0, "asleep": 0.0}
        self._phase, self._since = "awake", time.perf_counter()

    def enter(self, phase: str) -> None:
        """End the current phase and begin another."""
        now = time.perf_counter()
        self._seconds[self._phase] += now - self._since
        self._phase, self._since = phase, now

    def read(self) -> dict[str, float]:
        """Return the seconds of each phase so far."""
        self.enter(self._phase)
        return dict(self._seconds)

    def save(self, folder: Path) -> None:
        """Write `seconds.json` to a folder."""
        (folder / SECONDS_NAME).write_text(json.dumps(self.read()))

    def load(self, folder: str | Path) -> None:
        """Continue from the seconds in the `seconds.json` of a folder; do nothing if there is none."""
        path = Path(folder) / SECONDS_NAME
        if path.is_file():
            self._seconds = json.loads(path.read_text())
