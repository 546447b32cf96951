"""The adapters, one folder per framework; import them as ``unifiedloss.adapters``."""

# From the repository's root, Python also finds this folder under the bare name "adapters", which
# belongs to another project. Imported under two names, every adapter would exist twice, with two
# registries and two sets of classes.
if __name__ != "unifiedloss.adapters":
    _message = (
        "this folder is the package 'unifiedloss.adapters', but it was imported as "
        f"{__name__!r}. Install unifiedloss ('pip install -e .' in the repository) and import "
        "'unifiedloss.adapters' instead; if another project's "
        f"{__name__!r} was meant, run Python from a folder outside the unifiedloss repository."
    )
    raise ImportError(_message)
