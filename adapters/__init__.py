"""The adapters, one folder per framework; installed, and only importable, as ``unifiedloss.adapters``."""

# Seen from the repository's root this folder also answers to the bare name "adapters", which another project owns.
# Imported under two names, every adapter would exist twice, with two registries and two sets of classes.
if __name__ != "unifiedloss.adapters":
    _message = (
        f"this folder is the package 'unifiedloss.adapters', but it was imported as {__name__!r}. Install unifiedloss "
        "('pip install -e .' in the repository) and import 'unifiedloss.adapters' instead; if another project's "
        f"{__name__!r} was meant, run Python from a folder outside the unifiedloss repository."
    )
    raise ImportError(_message)
