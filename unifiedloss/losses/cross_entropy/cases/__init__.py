"""The cases of the cross-entropy."""

from unifiedloss.conformance.case import LossCases
from unifiedloss.losses.cross_entropy.cases.bad import bad_calls
from unifiedloss.losses.cross_entropy.cases.edges import edge_cases
from unifiedloss.losses.cross_entropy.cases.fusible import fusible
from unifiedloss.losses.cross_entropy.cases.marked import marked_cases
from unifiedloss.losses.cross_entropy.cases.products import (
    product_cases,
    random_cases,
    rule_cases,
)
from unifiedloss.losses.cross_entropy.hard import hard_cases

CASES = LossCases(
    edge_cases=edge_cases,
    bad_calls=bad_calls,
    marked_cases=marked_cases,
    product_cases=product_cases,
    rule_cases=rule_cases,
    random_cases=random_cases,
    hard_cases=hard_cases,
    fusible=fusible,
)
