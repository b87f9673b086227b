"""The look of every page: light and dark by the reader's setting, plain on paper, one column on a phone.

Colours and type are those of the charts in docs/. Nothing says a verdict by its colour alone.
"""

from typing import Final

STYLE: Final = """
:root { color-scheme: light dark;
  --ground: #ffffff; --card: #f6f7f9; --ink: #1d2430; --soft: #566072; --faint: #dfe3e8; --band: #eef1f5;
  --good: #176f31; --bad: #b42318; --bad-ground: #fdeceb; --warn-ground: #fff4d6;
  --s0: #1f6fb2; --s1: #c2410c; --s2: #0f766e; --s3: #8b2fd6; --s4: #8a5a00; --s5: #5b6675; }
@media screen and (prefers-color-scheme: dark) { :root {
  --ground: #12161c; --card: #1a2029; --ink: #e4e8ee; --soft: #a3adbb; --faint: #343d4a; --band: #1d242e;
  --good: #56c271; --bad: #ff8a80; --bad-ground: #3a1d1f; --warn-ground: #3a3016;
  --s0: #62a8ea; --s1: #ff9a5c; --s2: #3fd0bf; --s3: #c797ff; --s4: #e3b341; --s5: #a9b5c4; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1240px; padding: 20px 16px 48px; background: var(--ground); color: var(--ink);
  font: 15px/1.45 system-ui, "DejaVu Sans", Verdana, sans-serif; }
h1 { font-size: 24px; line-height: 1.2; margin: 4px 0; }
h2 { font-size: 18px; margin: 36px 0 8px; }
p { margin: 6px 0; max-width: 76ch; }
p, h1, dd, li { overflow-wrap: anywhere; }
td { overflow-wrap: break-word; }
table.stacks td:last-child { overflow-wrap: anywhere; }
td:first-child, table:not(.stacks) td { overflow-wrap: normal; white-space: nowrap; }
.soft, figcaption { color: var(--soft); }
.headline span { display: inline-block; margin: 8px 0 2px; padding: 4px 16px; border: 2px solid; border-radius: 6px;
  font-size: 28px; font-weight: 700; letter-spacing: .04em; }
.good { color: var(--good); }
.bad { color: var(--bad); font-weight: 600; }
.note { background: var(--warn-ground); border-left: 4px solid var(--s4); padding: 8px 12px; }
ul.failed { margin: 6px 0; padding-left: 20px; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 2px 16px; margin: 12px 0; }
dt { color: var(--soft); }
dd { margin: 0; }
code, pre { font: 13px/1.5 ui-monospace, "DejaVu Sans Mono", monospace; }
pre { background: var(--card); padding: 10px 12px; border-radius: 6px; white-space: pre-wrap;
  overflow-wrap: anywhere; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 14px; }
th, td { text-align: left; vertical-align: top; padding: 5px 10px 5px 0; border-bottom: 1px solid var(--faint); }
th { color: var(--soft); font-weight: 600; }
thead th { vertical-align: bottom; }
tr.bad-row { background: var(--bad-ground); }
tr.bad-row td:first-child { box-shadow: inset 4px 0 var(--bad); padding-left: 10px; }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; overflow-wrap: normal; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 340px), 1fr)); gap: 16px; }
figure { margin: 0; padding: 10px; background: var(--card); border-radius: 6px; break-inside: avoid; }
figcaption { font-size: 13px; min-height: 3.6em; }
figcaption b { color: var(--ink); display: block; font-size: 14px; }
figure svg { display: block; width: 100%; height: auto; max-width: 560px; }
svg text { fill: var(--soft); font: 11px system-ui, "DejaVu Sans", Verdana, sans-serif; }
.grid { stroke: var(--faint); }
.band { fill: var(--band); }
.band.odd { fill: var(--faint); opacity: .7; }
.line { fill: none; stroke-width: 2; stroke-linejoin: round; }
.mark { stroke: var(--ink); stroke-width: 1.5; }
.mark.dashed { stroke-dasharray: 3 2; }
.line.s0 { stroke: var(--s0); } .line.s1 { stroke: var(--s1); } .line.s2 { stroke: var(--s2); }
.line.s3 { stroke: var(--s3); } .line.s4 { stroke: var(--s4); } .line.s5 { stroke: var(--s5); }
.area.s0 { fill: var(--s0); } .area.s1 { fill: var(--s1); }
ul.legend { list-style: none; display: flex; flex-wrap: wrap; gap: 2px 14px; margin: 6px 0 0; padding: 0;
  font-size: 12px; color: var(--soft); }
ul.legend li { display: flex; align-items: center; gap: 6px; }
ul.legend svg { flex: none; width: 26px; height: 10px; }
footer { margin-top: 40px; color: var(--soft); font-size: 13px; }
@media (max-width: 640px) {
  body { padding: 12px 10px 32px; }
  figcaption { min-height: 0; margin-bottom: 4px; }
  table.stacks thead { display: none; }
  table.stacks tr { display: block; padding: 8px 0; border-bottom: 1px solid var(--faint); }
  table.stacks tr.bad-row { padding-left: 10px; box-shadow: inset 4px 0 var(--bad); }
  table.stacks tr.bad-row td:first-child { box-shadow: none; padding-left: 0; }
  table.stacks td { display: grid; grid-template-columns: 7.5em minmax(0, 1fr); gap: 8px; border: 0; padding: 2px 0;
    text-align: left; white-space: normal; overflow-wrap: anywhere; }
  table.stacks td::before { content: attr(data-label); color: var(--soft); }
}
@media print { body { max-width: none; padding: 0; font-size: 11px; } table { font-size: 10px; }
  table.stacks td { overflow-wrap: anywhere; }
  table:not(.stacks) { font-size: 7px; } table:not(.stacks) :is(td, th) { padding-right: 4px; }
  .charts { grid-template-columns: repeat(2, 1fr); } tr { break-inside: avoid; } .wide { overflow: visible; } }
"""
