"""The options of commands that read files of arrays."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from unifiedloss.readers.files import Files

File = Annotated[
    Path,
    typer.Argument(
        metavar="FILE",
        help="An .npz, .safetensors, .parquet, .zarr or .h5 file with predictions and targets, and "
        "optionally sample_weight and mask; or an .npy file of predictions.",
    ),
]
TargetsFile = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="The file of the targets, if FILE does not hold them."),
]
WeightFile = Annotated[
    Path | None, typer.Option(metavar="FILE", help="The file of the sample weights, likewise.")
]
MaskFile = Annotated[
    Path | None, typer.Option(metavar="FILE", help="The file of the mask, likewise.")
]
PredictionsKey = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="The name of the predictions in a file of several arrays."),
]
TargetsKey = Annotated[
    str | None, typer.Option(metavar="NAME", help="The name of the targets, likewise.")
]
WeightKey = Annotated[
    str | None, typer.Option(metavar="NAME", help="The name of the sample weights, likewise.")
]
MaskKey = Annotated[
    str | None, typer.Option(metavar="NAME", help="The name of the mask, likewise.")
]


def files_of(
    file: Path,
    others: Sequence[Path | None] = (),
    keys: Sequence[str | None] = (),
    by: str | None = None,
) -> Files:
    """The files of a command, from its options; None for those that are not given.

    Args:
        file: the main file.
        others: the files of targets, sample weights and mask, or the first of these.
        keys: the names of predictions, targets, sample weights and mask, or the first of these.
        by: the groups.
    """
    from unifiedloss.readers.files import ARGUMENTS, Files

    paths = dict(zip(ARGUMENTS[1:], others, strict=False))
    names = dict(zip(ARGUMENTS, keys, strict=False))
    return Files(
        file,
        {name: path for name, path in paths.items() if path is not None},
        {name: key for name, key in names.items() if key is not None},
        by,
    )
