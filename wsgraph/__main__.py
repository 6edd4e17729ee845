"""``python -m wsgraph`` is the ``wsgraph`` command."""

from wsgraph.cli import app

if __name__ == "__main__":
    app(prog_name="wsgraph")
