"""The frame of the HTML report: one self-contained page for phones and laptops, light and dark."""

from __future__ import annotations

import html

_CSS = """
:root {
  color-scheme: light dark;
  --ground: #ffffff; --panel: #f6f8fa; --ink: #1f2328; --muted: #59636e; --line: #d9dee3;
  --accent: #0065a3; --yes: #1a7f37; --yes-ground: #dff5e4; --no: #b3261e; --no-ground: #fde7e5;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ground: #0f1216; --panel: #181d23; --ink: #e6eaef; --muted: #9aa5b1; --line: #2d353e;
    --accent: #6cb6ff; --yes: #5fd17f; --yes-ground: #12301b; --no: #ff8f86; --no-ground: #3d1714;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--ground); color: var(--ink); -webkit-text-size-adjust: 100%;
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif;
}
main { max-width: 768px; margin: 0 auto; padding: 40px 24px 72px; }
h1 { font-size: 1.85rem; line-height: 1.2; letter-spacing: -0.015em; margin: 0 0 12px; }
h2 { font-size: 1.2rem; line-height: 1.3; margin: 44px 0 14px; }
h3 { font-size: 1rem; margin: 22px 0 8px; }
p { margin: 0 0 12px; overflow-wrap: anywhere; }
a { color: var(--accent); text-underline-offset: 2px; }
.summary { font-size: 1.08rem; }
.facts { display: flex; flex-wrap: wrap; gap: 6px 28px; margin: 18px 0 0; padding: 14px 0;
  border-top: 1px solid var(--line); border-bottom: 1px solid var(--line); }
.facts dt, .tiles dt { color: var(--muted); font-size: 0.8rem; line-height: 1.4; }
.facts dd { margin: 0; font-size: 0.95rem; overflow-wrap: anywhere; }
.tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(164px, 1fr)); gap: 10px;
  margin: 0; }
.tiles div { background: var(--panel); border: 1px solid var(--line); border-radius: 8px;
  padding: 10px 14px; }
.tiles dt { overflow-wrap: anywhere; }
.tiles dd { margin: 2px 0 0; font-size: 1.2rem; font-weight: 600; line-height: 1.3;
  font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
.tiles dd.words { font-size: 0.95rem; font-weight: 400; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 0.93rem; line-height: 1.4; }
th { text-align: left; color: var(--muted); font-weight: 500; font-size: 0.83rem; }
th, td { padding: 9px 20px 9px 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th:last-child, td:last-child { padding-right: 0; }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.mark { display: inline-block; border-radius: 99px; padding: 1px 11px; font-size: 0.83rem;
  font-weight: 600; white-space: nowrap; }
.yes { color: var(--yes); background: var(--yes-ground); }
.no { color: var(--no); background: var(--no-ground); }
figure { margin: 0 0 28px; }
figure img { display: block; width: 100%; height: auto; background: #ffffff;
  border: 1px solid var(--line); border-radius: 8px; padding: 10px; }
figcaption, .caption { color: var(--muted); font-size: 0.9rem; line-height: 1.45; margin: 8px 0; }
pre { background: var(--panel); border: 1px solid var(--line); border-radius: 8px; margin: 0 0 12px;
  padding: 12px 14px; overflow: auto; max-height: 30rem; font-size: 0.84rem; line-height: 1.5;
  font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
pre.wrap { white-space: pre-wrap; overflow-wrap: anywhere; }
details { border: 1px solid var(--line); border-radius: 8px; padding: 0 14px; margin: 0 0 10px; }
summary { cursor: pointer; padding: 10px 0; font-weight: 500; }
details .scroll { padding-bottom: 12px; }
@media (max-width: 600px) {
  main { padding: 24px 16px 48px; }
  h1 { font-size: 1.5rem; }
  .tiles { grid-template-columns: repeat(auto-fill, minmax(136px, 1fr)); }
  .claims thead { display: none; }
  .claims tr { display: grid; grid-template-columns: auto 1fr; gap: 2px 14px; padding: 12px 0;
    border-bottom: 1px solid var(--line); }
  .claims td { padding: 0; border: 0; grid-column: 2; }
  .claims td.claim { grid-column: 1 / -1; font-weight: 500; margin-bottom: 4px; }
  .claims td::before { content: attr(data-label); color: var(--muted); font-size: 0.83rem;
    display: inline-block; width: 5.2rem; }
  .claims td:not(.claim) { grid-column: 1 / -1; }
  .claims td.claim::before { content: none; }
}
@media print { pre { max-height: none; } figure, .tiles div { break-inside: avoid; } }
"""

# Forbids loading or running anything, even if text on the page tries to.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def page(title: str, body: str) -> str:
    """Returns a complete HTML document; `title` is text, `body` is HTML."""
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<title>{html.escape(title)}</title>
<style>{_CSS}</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""
