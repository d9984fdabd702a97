"""SVG to PNG: icons on white, square, at one size."""

from __future__ import annotations

import io

import resvg_py
from PIL import Image

_MARGIN = 0.04  # of the longer side; keeps outlines off the border


def svg_of(body: str, width: float, height: float, *, left: float = 0, top: float = 0, colour: str = "#000000") -> str:
    """Returns a square SVG with the icon in its middle; `colour` takes the place of currentColor."""
    side = max(width, height) * (1 + 2 * _MARGIN)
    box = f"{left - (side - width) / 2:g} {top - (side - height) / 2:g} {side:g} {side:g}"
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{box}" width="64" height="64" color="{colour}">{body.replace("currentColor", colour)}</svg>'
    )


def rasterise(svg: str, size_px: int) -> bytes | None:
    """Returns RGB PNG bytes of `size_px` squared on white, or None where the SVG draws nothing.

    Raises:
        ValueError: the SVG cannot be parsed.
    """
    drawn = resvg_py.svg_to_bytes(
        svg_string=svg, width=size_px, height=size_px, background="#ffffff", skip_system_fonts=True
    )
    picture = Image.open(io.BytesIO(drawn)).convert("RGB")
    if picture.getcolors(maxcolors=1) is not None:
        return None
    out = io.BytesIO()
    picture.save(out, format="PNG", compress_level=6)
    return out.getvalue()
