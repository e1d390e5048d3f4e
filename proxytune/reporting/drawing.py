"""Figures as files, drawn by vl-convert: no browser, no network."""

from __future__ import annotations

import altair as alt
import vl_convert

FORMATS = ("svg", "png", "pdf")
_SCALE = 2.0
"""Pixels of a PNG file for each of the figure's."""


def drawn(chart: alt.Chart, format: str = "svg") -> bytes:
    """The file's content: svg (the text as text), png or pdf."""
    declaration = chart.to_dict()
    if format == "svg":
        return vl_convert.vegalite_to_svg(declaration).encode()
    if format == "png":
        return vl_convert.vegalite_to_png(declaration, scale=_SCALE)
    return vl_convert.vegalite_to_pdf(declaration)
