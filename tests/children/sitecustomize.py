"""Programs that tests start seldom collect garbage: else that is a third of the seconds of a short one."""

import atexit
import gc

gc.set_threshold(100_000, 50, 100)
atexit.register(gc.freeze)
