"""The table of operators by its former name, which programs of users import."""

from wsgraph.operators import OPERATORS, parse_operator, register_operator

__all__ = ["OPERATORS", "parse_operator", "register_operator"]
