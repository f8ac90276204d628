"""Files and folders that appear complete or not at all, and the lock on an output folder."""
