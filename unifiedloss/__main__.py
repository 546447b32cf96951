"""Run the command line: ``python -m unifiedloss`` is ``unifiedloss``."""

from __future__ import annotations

from unifiedloss.cli import main

if __name__ == "__main__":
    main()
