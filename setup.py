"""Find the packages. Everything else about the distribution stands in pyproject.toml."""

from setuptools import find_packages, setup

# The adapters lie beside the core so that the repository shows the two apart, and they install inside
# the package. Automatic discovery cannot express that.
setup(
    package_dir={"unifiedloss": "unifiedloss", "unifiedloss.adapters": "adapters"},
    packages=[
        *find_packages(include=["unifiedloss", "unifiedloss.*"]),
        "unifiedloss.adapters",
        *(f"unifiedloss.adapters.{name}" for name in find_packages("adapters")),
    ],
)
