"""Blocks of an HTML page that needs nothing else: no network, no script, every text escaped."""

from __future__ import annotations

import base64
import dataclasses
import html
import io
from collections.abc import Sequence

from PIL import Image

from evaluation.sets.images import UnreadableImage, decode

_STYLE = """
:root { color-scheme: light; --ink: #1d2430; --soft: #5d6776; --line: #e3e7ee; --page: #f5f7fa; --card: #fff;
  --good: #1f9d6b; --bad: #cf3f3f; --accent: #2f6fde; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 15px/1.5 system-ui, "Segoe UI", sans-serif; }
main { max-width: 1160px; margin: 0 auto; padding: 24px 20px 64px; }
header h1 { font-size: 30px; margin: 12px 0 2px; letter-spacing: -0.02em; }
header p { color: var(--soft); margin: 0 0 12px; }
nav a { color: var(--accent); text-decoration: none; margin-right: 16px; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 18px 22px 22px;
  margin-top: 18px; overflow-x: auto; }
h2 { font-size: 20px; margin: 0 0 4px; } h3 { font-size: 15px; margin: 20px 0 6px; }
section > p { color: var(--soft); margin: 0 0 12px; max-width: 78ch; } section > p:has(.figure) { max-width: none; }
li { overflow-wrap: anywhere; }
table + p { margin-top: 8px; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; min-width: 55%; }
th, td { text-align: left; padding: 5px 14px 5px 0; border-bottom: 1px solid var(--line); vertical-align: middle; }
td small { display: block; color: var(--soft); font-size: 11.5px; line-height: 1.3; white-space: nowrap; }
th { color: var(--soft); font-weight: 600; font-size: 13px; } td.number, th.number { text-align: right; }
#goals td { white-space: nowrap; }
.met { color: var(--good); font-weight: 600; } .not { color: var(--bad); font-weight: 600; }
.bar { height: 12px; border-radius: 6px; background: var(--accent); min-width: 2px; }
.bar.kept { background: var(--good); } .bar.dropped { background: #e0a13b; } .bar.failed { background: var(--bad); }
.bars td:last-child { width: 45%; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(400px, 1fr)); gap: 16px; }
.chart { width: 100%; height: auto; font: 11px system-ui, sans-serif; fill: var(--soft); }
.chart-title { font-size: 13px; font-weight: 600; fill: var(--ink); } .grid { stroke: var(--line); }
.samples { display: grid; grid-template-columns: repeat(auto-fill, minmax(170px, 1fr)); gap: 12px; }
.sample { border: 1px solid var(--line); border-radius: 10px; padding: 10px; font-size: 12.5px;
  overflow-wrap: anywhere; }
.sample img, .gap { display: block; width: 72px; height: 72px; margin: 0 auto 8px; object-fit: contain; }
.gap { background: var(--line); border-radius: 8px; }
.label { display: inline-block; background: #e5eefd; color: #1d4fae; border-radius: 6px; padding: 0 7px;
  margin: 2px 4px 2px 0; }
.text { color: var(--soft); }
.hits { display: flex; gap: 6px; align-items: center; margin: 6px 0; }
.hits img { width: 58px; height: 58px; object-fit: contain; border: 3px solid transparent; border-radius: 8px;
  background: #fff; }
.hits img.query { border-color: var(--ink); margin-right: 10px; }
.hits img.right { border-color: var(--good); } .hits img.wrong { border-color: var(--bad); }
.hits span { color: var(--soft); font-size: 12.5px; width: 150px; flex: none; overflow-wrap: anywhere; }
.figure { max-width: 100%; }
details summary { cursor: pointer; font-weight: 600; margin-top: 12px; }
"""


@dataclasses.dataclass(frozen=True)
class Markup:
    """HTML that goes into a table as it is."""

    html: str


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
    shown = [(anchor, heading, body) for anchor, heading, body in sections if body]
    links = "".join(f'<a href="#{anchor}">{escape(heading)}</a>' for anchor, heading, _ in shown)
    bodies = "".join(
        f'<section id="{anchor}"><h2>{escape(heading)}</h2>{body}</section>' for anchor, heading, body in shown
    )
    lines = "".join(f"<li>{escape(line)}</li>" for line in missing)
    notice = f'<section id="missing"><h2>Not measured</h2><ul>{lines}</ul></section>' if lines else ""
    # The policy makes a browser refuse what the page must not hold: anything from the network, any script.
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\">"
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body><main>"
        f"<header><h1>{escape(title)}</h1><p>{escape(subtitle)}</p><nav>{links}</nav></header>{notice}{bodies}"
        "</main></body></html>"
    )


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


def escape(value: object) -> str:
    """Returns `value` as text that is safe in HTML, attributes included."""
    return html.escape(str(value), quote=True)


def table(header: Sequence[str], rows: Sequence[Sequence[object]], *, style: str = "") -> str:
    """Returns a table; floats show three digits, and a `Markup` cell goes in as it is."""

    def cell(value: object) -> str:
        if isinstance(value, Markup):
            return f"<td>{value.html}</td>"
        shown = f"{value:.3f}" if isinstance(value, float) else "" if value is None else value
        return f"<td{' class=number' if isinstance(value, int | float) else ''}>{escape(shown)}</td>"

    def is_number(column: int) -> bool:
        return any(isinstance(row[column], int | float) for row in rows)

    head = "".join(
        f"<th{' class=number' if is_number(column) else ''}>{escape(value)}</th>" for column, value in enumerate(header)
    )
    body = "".join("<tr>" + "".join(cell(value) for value in row) + "</tr>" for row in rows)
    return f'<table class="{style}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'


def interval_text(interval: tuple[float, float] | None) -> str:
    """Returns an interval as text, such as "0.412 to 0.467"; "" for None."""
    return "" if interval is None else f"{interval[0]:.3f} to {interval[1]:.3f}"
