"""Blocks of an HTML page that needs nothing else: no network, no script, every text escaped. Standard library only."""

from __future__ import annotations

import base64
import dataclasses
import html
from collections.abc import Sequence

_STYLE = """
:root { color-scheme: light; --ink: #1d2430; --soft: #5d6776; --line: #e3e7ee; --page: #f5f7fa; --card: #fff;
  --accent: #2f6fde; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 15px/1.5 system-ui, "Segoe UI", sans-serif; }
main { max-width: 1160px; margin: 0 auto; padding: 24px 20px 64px; }
header h1 { font-size: 30px; margin: 12px 0 2px; letter-spacing: -0.02em; overflow-wrap: anywhere; }
header p { color: var(--soft); margin: 0 0 12px; }
nav a { color: var(--accent); text-decoration: none; margin-right: 16px; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 18px 22px 22px;
  margin-top: 18px; overflow-x: auto; }
h2 { font-size: 20px; margin: 0 0 4px; } h3 { font-size: 15px; margin: 20px 0 6px; }
section > p { color: var(--soft); margin: 0 0 12px; max-width: 78ch; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; min-width: 55%; margin-top: 8px; }
th, td { text-align: left; padding: 5px 14px 5px 0; border-bottom: 1px solid var(--line); vertical-align: top;
  overflow-wrap: break-word; }
th { color: var(--soft); font-weight: 600; font-size: 13px; } td.number, th.number { text-align: right; }
td.number { white-space: nowrap; }
.tiles { display: flex; flex-wrap: wrap; gap: 12px; margin: 8px 0 12px; }
.tile { border: 1px solid var(--line); border-radius: 10px; padding: 8px 16px; }
.tile b { display: block; font-size: 22px; } .tile span { color: var(--soft); font-size: 13px; }
.figure { display: block; max-width: 100%; margin: 6px 0; }
.samples { display: grid; grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); gap: 10px; }
.sample { border: 1px solid var(--line); border-radius: 10px; padding: 8px; font-size: 12px; line-height: 1.35;
  overflow-wrap: anywhere; }
.sample img, .gap { display: block; width: 88px; height: 88px; margin: 0 auto 6px; object-fit: contain; }
.gap { background: var(--line); border-radius: 8px; }
.sample small { display: block; color: var(--soft); }
.label { display: inline-block; background: #e5eefd; color: #1d4fae; border-radius: 6px; padding: 0 6px;
  margin: 2px 4px 2px 0; }
.soft { color: var(--soft); font-weight: 400; }
"""


@dataclasses.dataclass(frozen=True)
class Markup:
    """HTML that goes into a page as it is."""

    html: str


def document(
    title: str, subtitle: str, sections: Sequence[tuple[str, str, str]], *, style: str = "", notice: str = ""
) -> str:
    """Returns a page.

    Args:
        title: its name.
        subtitle: one line below it.
        sections: (anchor, heading, body as HTML); those without a body are left out.
        style: CSS beyond that of these blocks.
        notice: HTML before the sections.
    """
    shown = [(anchor, heading, body) for anchor, heading, body in sections if body]
    links = "".join(f'<a href="#{anchor}">{escape(heading)}</a>' for anchor, heading, _ in shown)
    bodies = "".join(
        f'<section id="{anchor}"><h2>{escape(heading)}</h2>{body}</section>' for anchor, heading, body in shown
    )
    # The policy makes a browser refuse what the page must not hold: anything from the network, any script.
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\">"
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
        f"<title>{escape(title)}</title><style>{_STYLE}{style}</style></head><body><main>"
        f"<header><h1>{escape(title)}</h1><p>{escape(subtitle)}</p><nav>{links}</nav></header>{notice}{bodies}"
        "</main></body></html>"
    )


def escape(value: object) -> str:
    """Returns `value` as text that is safe in HTML, attributes included; lone surrogates become question marks."""
    return html.escape(str(value).encode("utf-8", "replace").decode(), quote=True)


def figure(svg: bytes, title: str) -> str:
    """Returns an SVG as a picture of the page; `title` says what it shows to who cannot see it."""
    return (
        f'<img class="figure" alt="{escape(title)}" src="data:image/svg+xml;base64,{base64.b64encode(svg).decode()}">'
    )


def paragraph(text: str) -> str:
    """Returns a paragraph."""
    return f"<p>{escape(text)}</p>"


def percent(part: float, whole: float = 1.0) -> str:
    """Returns a share as text with a percent sign, such as "60.6 %"."""
    return f"{100 * part / whole:.1f} %" if whole else "-"


def table(header: Sequence[str], rows: Sequence[Sequence[object]], *, style: str = "") -> str:
    """Returns a table of the class `style`; integers have thousands apart, floats show three digits, None is a dash.

    Numbers and what `percent` returns stand to the right; `Markup` goes in as it is.
    """

    def cell(value: object) -> str:
        if isinstance(value, Markup):
            return f"<td>{value.html}</td>"
        if value is None:
            return "<td class=number>-</td>"
        shown = f"{value:.3f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else value
        return f"<td{' class=number' if is_number(value) else ''}>{escape(shown)}</td>"

    def is_number(value: object) -> bool:
        return isinstance(value, int | float) or (isinstance(value, str) and value.endswith(" %"))

    head = "".join(
        f"<th{' class=number' if any(is_number(row[column]) for row in rows) else ''}>{escape(value)}</th>"
        for column, value in enumerate(header)
    )
    body = "".join("<tr>" + "".join(cell(value) for value in row) + "</tr>" for row in rows)
    return f"<table{f' class={style}' if style else ''}><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def tiles(values: Sequence[tuple[str, str]]) -> str:
    """Returns large numbers side by side, each with what it counts: (number, what)."""
    parts = "".join(
        f'<div class="tile"><b>{escape(number)}</b><span>{escape(what)}</span></div>' for number, what in values
    )
    return f'<div class="tiles">{parts}</div>'
