"""What a script says when an argument, a file or a stage does not fit: one line, and no traceback."""

import sys
from collections.abc import Callable
from pathlib import Path

from datasets.exceptions import DatasetsError

ERRORS = (DatasetsError, FloatingPointError, MemoryError, OSError, TypeError, ValueError)


def run(main: Callable[[], None]) -> None:
    """Run a script; print one of `ERRORS` on one line, and exit with status 1. `python -X dev` shows its traceback."""
    try:
        main()
    except ERRORS as error:
        if sys.flags.dev_mode:
            raise
        message = " ".join(str(error).split()) or type(error).__name__
        sys.exit(f"{Path(sys.argv[0]).name}: error: {message}")
