"""Pages of results: the blocks of `pipeline.report.html_page`, with pictures, bars and charts."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

from PIL import Image

from evaluation.sets.images import UnreadableImage, decode
from pipeline.report import html_page
from pipeline.report.html_page import escape

_STYLE = """
:root { --good: #1f9d6b; --bad: #cf3f3f; }
section > p:has(.figure) { max-width: none; }
li { overflow-wrap: anywhere; }
table + p { margin-top: 8px; }
td { vertical-align: middle; }
td small { display: block; color: var(--soft); font-size: 11.5px; line-height: 1.3; white-space: nowrap; }
#goals td { white-space: nowrap; }
.met { color: var(--good); font-weight: 600; } .not { color: var(--bad); font-weight: 600; }
.bar { height: 12px; border-radius: 6px; background: var(--accent); min-width: 2px; }
.bar.kept { background: var(--good); } .bar.dropped { background: #e0a13b; } .bar.failed { background: var(--bad); }
.bars td:last-child { width: 45%; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(400px, 1fr)); gap: 16px; }
.chart { width: 100%; height: auto; font: 11px system-ui, sans-serif; fill: var(--soft); }
.chart-title { font-size: 13px; font-weight: 600; fill: var(--ink); } .grid { stroke: var(--line); }
.text { color: var(--soft); }
.hits { display: flex; gap: 6px; align-items: center; margin: 6px 0; }
.hits img { width: 58px; height: 58px; object-fit: contain; border: 3px solid transparent; border-radius: 8px;
  background: #fff; }
.hits img.query { border-color: var(--ink); margin-right: 10px; }
.hits img.right { border-color: var(--good); } .hits img.wrong { border-color: var(--bad); }
.hits span { color: var(--soft); font-size: 12.5px; width: 150px; flex: none; overflow-wrap: anywhere; }
details summary { cursor: pointer; font-weight: 600; margin-top: 12px; }
"""


def document(
    title: str, subtitle: str, sections: Sequence[tuple[str, str, str]], *, missing: Sequence[str] = ()
) -> str:
    """Returns a page.

    Args:
        title: its name.
        subtitle: one line below it.
        sections: (anchor, heading, body as HTML); those without a body are left out.
        missing: what was not there to be measured, one line each.
    """
    lines = "".join(f"<li>{escape(line)}</li>" for line in missing)
    notice = f'<section id="missing"><h2>Not measured</h2><ul>{lines}</ul></section>' if lines else ""
    return html_page.document(title, subtitle, sections, style=_STYLE, notice=notice)


def data_uri(image: bytes, image_id: str, *, side_px: int = 128) -> str | None:
    """Returns the picture as a PNG data URI, at most `side_px` wide and high; None if it cannot be read.

    Pictures are always encoded again, so nothing but pixels reaches the page.
    """
    try:
        picture = decode(image, image_id, on_white=True)
    except UnreadableImage:
        return None
    picture.thumbnail((side_px, side_px), Image.Resampling.BILINEAR)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def interval_text(interval: tuple[float, float] | None) -> str:
    """Returns an interval as text, such as "0.412 to 0.467"; "" for None."""
    return "" if interval is None else f"{interval[0]:.3f} to {interval[1]:.3f}"
