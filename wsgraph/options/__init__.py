"""Options of runs, without PyTorch, which the command line need not wait for."""

from wsgraph.options.entry import Option, defaults_of, option, options_of, read_pairs, read_value
from wsgraph.options.given import (
    acting_options,
    command_text,
    command_words,
    differing,
    given_options,
    named_text,
    plain_value,
    read_options,
    signature_of,
    written_options,
)
from wsgraph.options.runs import KINDS, FolderOptions, ReadingOptions, ScoringOptions, TrainingOptions, known_options

__all__ = [
    "KINDS",
    "FolderOptions",
    "Option",
    "ReadingOptions",
    "ScoringOptions",
    "TrainingOptions",
    "acting_options",
    "command_text",
    "command_words",
    "defaults_of",
    "differing",
    "given_options",
    "known_options",
    "named_text",
    "option",
    "options_of",
    "plain_value",
    "read_options",
    "read_pairs",
    "read_value",
    "signature_of",
    "written_options",
]
