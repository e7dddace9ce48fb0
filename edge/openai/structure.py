"""`response_format` as rules that the answer keeps to; what cannot be kept is refused before a token is computed."""

from typing import TYPE_CHECKING, Final

from ..errors import SlmEdgeError
from .faults import Fault, fault_of
from .fields import ResponseFormat

if TYPE_CHECKING:
    from ..grammar.rules import Rules

_PLACE: Final = "response_format.json_schema.schema"


def rules_of(wanted: ResponseFormat | None) -> "Rules | None":
    """The rules; None where the task card's hold.

    Raises:
        Fault: 400; the schema is missing, is not valid, or says what no grammar is made of.
    """
    if wanted is None or wanted.type == "text":
        return None
    from ..grammar.rules import schema_grammar

    if wanted.type == "json_object":
        return schema_grammar({"type": "object"})
    if wanted.json_schema is None or wanted.json_schema.schema is None:
        raise Fault(400, "missing_required_parameter", f"{_PLACE}: it is missing", param=_PLACE)
    try:
        return schema_grammar(wanted.json_schema.schema)
    except SlmEdgeError as error:
        raise fault_of(error, f"{_PLACE}{error.where or ''}") from None
