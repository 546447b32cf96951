"""Say in a sentence what each field of a spec means at its value.

`unifiedloss.explain` prints the sentences of all fields under the formula; `unifiedloss.diff`
compares those of two specs. Every sentence begins with the value, so no two values of a field have
the same sentence.
"""

from __future__ import annotations

from unifiedloss import losses
from unifiedloss.formulas import any_row_sum
from unifiedloss.spec import Categorical, Loss
from unifiedloss.text import Text, code, value


def sentence(spec: Loss, field: str) -> Text:
    """Say what the field means at its value.

    Args:
        spec: the loss.
        field: the name of one of its fields.
    """
    given = getattr(spec, field)
    meaning = spec.declarations[field].meaning(spec, given)
    return Text.of(code(value(given)), ": ", meaning, ".")


def sentences(spec: Loss) -> dict[str, Text]:
    """Return a sentence for every field, in the order of the fields."""
    return {field: sentence(spec, field) for field in spec.declarations}


def title(spec: Loss) -> str:
    """The name of the loss, to begin a text."""
    name: str = losses.part(spec.name, "formula").TITLE
    return name


def special_values(spec: Loss) -> list[Text]:
    """Say how the loss treats infinities, NaN, zeros, invalid labels and empty batches."""
    own: list[Text] = losses.part(spec.name, "formula").special_values(spec)
    texts = [*own, *_special_positions(spec)]
    return [*texts, any_row_sum(spec)] if isinstance(spec, Categorical) else texts


def _special_positions(spec: Loss) -> list[Text]:
    texts = [
        Text.of(
            "Positions that are masked or have sample weight 0 have loss and gradient 0, "
            "and nothing in them is read."
        ),
        Text.of("Shapes must fit: nothing is squeezed and nothing is broadcast."),
    ]
    empty = {"none": "an empty array", "sum": "0"}.get(spec.reduction)
    if empty is None:
        empty = {"nan": "NaN", "zero": "0", "error": "an error"}[spec.on_empty]
    return [*texts, Text.of(f"An empty batch gives {empty}.")]
