"""The conformance suite: compare every backend, mode and option with a framework-free oracle.

``unifiedloss conform`` calls `run`, which checks the installed backends, each in its own process.
`check_adapter` and `assert_conforms` check one adapter in this process, for example in the tests of
a third-party adapter:

```python
from unifiedloss import registry
from unifiedloss.conformance import assert_conforms

assert_conforms(registry.adapter("numpy"), losses=["mean_squared_error"])
```

`check_loss` and `check_loss_case` check a loss function of anybody against a spec.
"""

from unifiedloss.conformance.case import BadCall, Case, SoftmaxCase
from unifiedloss.conformance.cases import all_cases, bad_calls, hard_cases
from unifiedloss.conformance.cases_of_spec import loss_cases
from unifiedloss.conformance.own_loss import check_loss, check_loss_case
from unifiedloss.conformance.own_report import OwnReport
from unifiedloss.conformance.report import Failure, Report, Row, Tally
from unifiedloss.conformance.runner import (
    Progress,
    assert_conforms,
    check_adapter,
    run,
    run_roundings,
)
from unifiedloss.conformance.softmax import bad_softmax_calls, softmax_cases

__all__ = [
    "BadCall",
    "Case",
    "Failure",
    "OwnReport",
    "Progress",
    "Report",
    "Row",
    "SoftmaxCase",
    "Tally",
    "all_cases",
    "assert_conforms",
    "bad_calls",
    "bad_softmax_calls",
    "check_adapter",
    "check_loss",
    "check_loss_case",
    "hard_cases",
    "loss_cases",
    "run",
    "run_roundings",
    "softmax_cases",
]
