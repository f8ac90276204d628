"""The learned codec: exact networks, a context model and a range coder."""
