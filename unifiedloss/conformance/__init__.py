"""The conformance suite: every backend, mode and option against an oracle that no framework had a hand in.

`run` checks the installed backends, each in a process of its own, and is what ``unifiedloss conform`` calls. `check_adapter` and
`assert_conforms` check one adapter in this process, for the tests of other adapters:

```python
from unifiedloss import registry
from unifiedloss.conformance import assert_conforms

assert_conforms(registry.adapter("numpy"), losses=["mean_squared_error"])
```
"""

from unifiedloss.conformance.cases import (
    BadCall,
    Case,
    SoftmaxCase,
    all_cases,
    bad_calls,
    bad_softmax_calls,
    softmax_cases,
)
from unifiedloss.conformance.hard import hard_cases
from unifiedloss.conformance.report import Failure, Report, Row, Tally
from unifiedloss.conformance.runner import Progress, assert_conforms, check_adapter, run

__all__ = [
    "BadCall",
    "Case",
    "Failure",
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
    "hard_cases",
    "run",
    "softmax_cases",
]
