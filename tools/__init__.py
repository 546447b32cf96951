"""Commands for the developers of this library; none of them is installed."""
