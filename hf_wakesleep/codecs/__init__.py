"""Codecs: from an image to a small code and back."""
