"""A picture of a collection: map."""

from __future__ import annotations

from typing import Annotated

import typer

from . import output
from .output import Db, Field, Name, Where


def register(app: typer.Typer) -> None:
    app.command(name="map")(map_)


def map_(
    name: Name,
    db: Db,
    out: Annotated[str, typer.Option("--out", "-o", help="A file that ends in .png or .html.", show_default=False)],
    color: Annotated[
        str | None, typer.Option("--color", help="A payload field by which points are coloured.", show_default=False)
    ] = None,
    label: Annotated[
        str | None, typer.Option("--label", help="A payload field that is shown for a point; default: all.", show_default=False)
    ] = None,
    method: Annotated[str, typer.Option("--method", help="pca or umap.")] = "pca",
    sample: Annotated[int, typer.Option("--sample", help="At most so many points, chosen at random.", min=3)] = 5000,
    where: Where = None,
    field: Field = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file if it is there.")] = False,
) -> None:
    """Draw a collection in two dimensions, as PNG or as one HTML page that shows points under the pointer."""
    from vecdb.picture import draw

    with output.opened(db) as database:
        drawn = draw(
            database[name],
            out,
            color=color,
            label=label,
            method=method,
            sample=sample,
            where=where,
            field=field,
            overwrite=overwrite,
        )
    output.say(f"{drawn:,} points in {out}")
