"""The replicas of `tf.distribute`, of which each computes a part of a batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf


def add_up() -> Callable[[Any], Any] | None:
    """A function that adds up a tensor over all replicas; None if the caller is not one of several.

    Every replica has to call it, because they wait for one another.
    """
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return None
    return lambda x: context.all_reduce("SUM", x)
