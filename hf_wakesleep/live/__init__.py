"""Live: a classifier that is taught, asked and corrected between the months, without a dataset or a training run."""
