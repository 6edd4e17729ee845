"""What is no test: a script for environments of another library."""

collect_ignore = ["write_flax_files.py"]
