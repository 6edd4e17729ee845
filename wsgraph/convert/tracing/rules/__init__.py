"""What every operator of a network does to neurons: rules by topic, one entry per operator.

Operators are named as in ``torch.ops.aten``, without overload and without the underscore of their in-place form. Functions of every entry
that the table of operators (:mod:`wsgraph.operators`) holds need no rule here. To add another operator, write an entry with
:func:`register_traced_operator`: most are one of the families of these modules.
"""

from wsgraph.convert.tracing.rules import normalisation, products, recurrent
from wsgraph.convert.tracing.rules.movement import move
from wsgraph.convert.tracing.rules.pointwise import pointwise, rule_of, spatial
from wsgraph.convert.tracing.rules.reductions import statistic
from wsgraph.convert.tracing.rules.table import READ_NOTHING, TRACED_OPERATORS, Call, register_traced_operator, unknown

__all__ = [
    "READ_NOTHING",
    "TRACED_OPERATORS",
    "Call",
    "move",
    "normalisation",
    "pointwise",
    "products",
    "recurrent",
    "register_traced_operator",
    "rule_of",
    "spatial",
    "statistic",
    "unknown",
]
