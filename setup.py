"""Find the packages. pyproject.toml declares everything else about the distribution."""

from setuptools import find_packages, setup

# The folder adapters/ lies beside the core in the repository, to keep the two apart, but installs
# as unifiedloss.adapters. Automatic discovery cannot express that.
setup(
    package_dir={"unifiedloss": "unifiedloss", "unifiedloss.adapters": "adapters"},
    packages=[
        *find_packages(include=["unifiedloss", "unifiedloss.*"]),
        "unifiedloss.adapters",
        *(f"unifiedloss.adapters.{name}" for name in find_packages("adapters")),
    ],
)
