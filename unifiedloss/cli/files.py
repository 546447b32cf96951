"""The options of commands that read files of arrays."""

from __future__ import annotations

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
    file: Path, others: dict[str, Path | None], keys: dict[str, str | None], by: str | None = None
) -> Files:
    """The files of a command, from its options; None for those that are not given."""
    from unifiedloss.readers.files import Files

    return Files(
        file,
        {name: path for name, path in others.items() if path is not None},
        {name: key for name, key in keys.items() if key is not None},
        by,
    )
