"""Data: streams of tasks made from `datasets`, and the images that are read from them."""
