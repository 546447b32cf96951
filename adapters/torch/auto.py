"""What ``rounding="auto"`` chooses where torch.compile traces a call.

torch.compile cannot trace `unifiedloss.auto_rounding`, which imports modules and asks NumPy. So it
calls `unifiedloss_reason`, which gets constants only, and takes the result as a constant. The
guards of a program are those of the constants.
"""

from __future__ import annotations

from typing import Any

import torch

from unifiedloss import auto_rounding
from unifiedloss.adapters.torch import spec_text
from unifiedloss.auto_rounding import Setting
from unifiedloss.inputs import Shape, Signature
from unifiedloss.plan import Plan, resolve


def why_native(plan: Plan, setting: Setting) -> str:
    """See `unifiedloss.auto_rounding.why_native`."""
    if not torch.compiler.is_compiling():
        return auto_rounding.why_native(plan, setting)
    shape, positions = _known(plan.shape), _known(plan.positions)
    targets = positions if plan.kind == "index" else shape
    forms = (shape, plan.gradient_dtype), (targets, plan.targets_dtype)
    ranks = plan.weight_rank, plan.mask_rank
    return unifiedloss_reason(
        spec_text.text_of(plan.spec), *forms, positions, *ranks, tuple(setting)
    )


def _known(shape: Any) -> Any:
    """The shape with None for extents that are symbols, because no choice depends on a size."""
    from torch.fx.experimental.symbolic_shapes import has_static_value

    return tuple([spec_text.constant(n) if has_static_value(n) else None for n in shape])


@torch.compiler.assume_constant_result
def unifiedloss_reason(
    text: str,
    predictions: tuple[Shape, str],
    targets: tuple[Shape, str],
    positions: Shape,
    weight_rank: int | None,
    mask_rank: int | None,
    setting: tuple[str, ...],
) -> str:
    """`why_native` of a call that has these forms; the name is seen in the globals of a caller."""
    weight = None if weight_rank is None else Signature(positions[:weight_rank], "float32")
    mask = None if mask_rank is None else Signature(positions[:mask_rank], "bool")
    tensors = Signature(*predictions), Signature(*targets), weight, mask
    plan = resolve(spec_text.spec_of(text), *tensors)
    return auto_rounding.why_native(plan, Setting(*setting))
