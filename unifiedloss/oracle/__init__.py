"""What the oracle computes with: real numbers, positions and their reduction.

`unifiedloss.reference` is its public face. It shares no code with what it checks.
"""
