"""Keras files: models with their configuration, and weights alone."""

from wsgraph.convert.formats.keras.reading import read_keras_file

__all__ = ["read_keras_file"]
