"""What every operator of a network does to neurons: rules by topic, one entry per operator.

Operators are named as in ``torch.ops.aten``, without overload and without the underscore of their in-place form. Functions of every entry
that the table of operators (:mod:`wsgraph.operators`) holds need no rule here. To add another operator, write an entry with
:func:`register_traced_operator`: most are one of the families of these modules.
"""

# All modules enter their rules.
from wsgraph.convert.tracing.rules import normalisation, products, recurrent  # noqa: F401
from wsgraph.convert.tracing.rules.elementwise import pointwise, spatial
from wsgraph.convert.tracing.rules.movement import move
from wsgraph.convert.tracing.rules.reductions import statistic
from wsgraph.convert.tracing.rules.table import TRACED_OPERATORS, Call, register_traced_operator

__all__ = ["TRACED_OPERATORS", "Call", "move", "pointwise", "register_traced_operator", "spatial", "statistic"]
