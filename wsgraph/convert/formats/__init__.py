"""File formats: one file each, which enters its reader in the registry of :func:`wsgraph.load_networks`."""

from wsgraph.convert.formats import flax, keras, nnet, onnx_files, stable_baselines, state_dicts  # noqa: F401
from wsgraph.convert.formats.entry import FORMATS, FileFormat, FileNetwork, register_format
from wsgraph.convert.formats.loading import file_ending, file_format, known_endings, load_networks

__all__ = ["FORMATS", "FileFormat", "FileNetwork", "file_ending", "file_format", "known_endings", "load_networks", "register_format"]
