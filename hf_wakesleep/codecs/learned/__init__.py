"""The learned codec: integer networks, a context model and a range coder."""
