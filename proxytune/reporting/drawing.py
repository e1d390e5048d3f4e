"""Figures as files, drawn by vl-convert: no browser, no network."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import altair as alt
import vl_convert

from proxytune.atomic import atomic_write
from proxytune.errors import UserError

_SCALE = 2.0
"""Pixels of a PNG file for each of the figure's."""


def drawn(chart: alt.FacetChart, format: str = "svg") -> bytes:
    """The content of the figure's file; raises UserError for a format other than svg, png and pdf."""
    declaration = chart.to_dict()
    if format == "svg":
        return vl_convert.vegalite_to_svg(declaration).encode()
    if format == "png":
        return vl_convert.vegalite_to_png(declaration, scale=_SCALE)
    if format == "pdf":
        return vl_convert.vegalite_to_pdf(declaration)
    raise UserError(f"format={format} is not allowed: it is svg, png or pdf")


def write_figures(charts: Mapping[str, alt.FacetChart], folder: Path, format: str = "svg") -> Iterator[Path]:
    """Writes each chart to `<name>.<format>` in `folder`, complete or not at all, and yields the path.

    Raises UserError for another format, and for a folder that cannot be written to.
    """
    for name, chart in charts.items():
        path = folder / f"{name}.{format}"
        content = drawn(chart, format)
        with atomic_write(path, binary=True) as file:
            file.write(content)
        yield path
