"""``python -m unifiedloss.cli``."""

from unifiedloss.cli import main

main()
