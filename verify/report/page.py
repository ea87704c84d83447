"""The report as one page of HTML that needs nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from string import Template
from typing import Any

_PAGE = Template("""\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>zo2 verify: $verdict</title>
<style>
:root { color-scheme: light dark; --line: #8884; --PASS: #1a7f37; --WARN: #9a6700; --FAIL: #cf222e;
  --SKIP: #6e7781; }
@media (prefers-color-scheme: dark) {
  :root { --PASS: #3fb950; --WARN: #d29922; --FAIL: #f85149; --SKIP: #8b949e; } }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 64rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin: 0 0 .25rem; border-left: .4rem solid var(--$colour);
  padding-left: .75rem; }
h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
.about { opacity: .75; margin: 0 0 1.5rem; padding-left: 1.15rem; }
table { border-collapse: collapse; width: 100%; }
td, th { text-align: left; vertical-align: top; padding: .35rem .75rem .35rem 0;
  border-top: 1px solid var(--line); overflow-wrap: anywhere; }
td.status { width: 3.5rem; font-weight: 600; }
td.name { width: 12rem; }
td.time { width: 4rem; text-align: right; padding-right: 0; opacity: .75; }
.PASS { color: var(--PASS); } .WARN { color: var(--WARN); } .FAIL { color: var(--FAIL); }
.SKIP { color: var(--SKIP); }
code, pre { font: 13px/1.45 ui-monospace, monospace; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; border: 1px solid var(--line); padding: .5rem;
  max-height: 20rem; overflow-y: auto; }
dl { display: grid; grid-template-columns: 3rem 1fr; gap: .15rem .75rem; margin: .35rem 0; }
dt { opacity: .75; } dd { margin: 0; overflow-wrap: anywhere; }
.mend { border: 1px solid var(--FAIL); border-radius: .4rem; padding: .5rem 1rem;
  margin: .75rem 0; }
.mend h3 { margin: 0; font-size: 1rem; }
</style>
</head>
<body>
<h1>$verdict</h1>
<p class="about">$about</p>
$steps
$groups
<h2>Machine</h2>
<table>$machine</table>
</body>
</html>
""")


def text(found: Mapping[str, Any], titles: Mapping[str, str]) -> str:
    """A document as a page; ``titles`` are the groups' titles by name."""
    results = found["results"]
    named = {result["identifier"]: result for result in results}
    steps = [_step(named[name]) for name in found["mend"]["steps"]]
    if found["mend"]["then"]:
        steps.append(f"<p>{escape(found['mend']['then'])}</p>")
    warned = found["counts"]["WARN"] > 0
    row = f", row {found['row']}" if found["row"] else ""
    about = f"zo2 verify, {found['started']}, {found['seconds']:g} s, tier {found['tier']}{row}"
    return _PAGE.substitute(
        verdict=escape(found["verdict"]),
        colour="FAIL" if found["exit_code"] else "WARN" if warned else "PASS",
        about=escape(about),
        steps="\n".join(steps),
        groups="\n".join(_group(name, titles[name], results) for name in titles),
        machine="\n".join(_fact(name, value) for name, value in found["machine"].items()),
    )


def _step(result: Mapping[str, Any]) -> str:
    return (
        f'<section class="mend"><h3 class="{result["status"]}">{escape(result["problem"])}</h3>'
        f"{_details(result)}</section>"
    )


def _group(name: str, title: str, results: list[Mapping[str, Any]]) -> str:
    rows = [_row(result) for result in results if result["group"] == name]
    return f"<h2>{escape(title)}</h2>\n<table>{''.join(rows)}</table>" if rows else ""


def _row(result: Mapping[str, Any]) -> str:
    status = result["status"]
    shown = escape(result["have"]) if status in ("PASS", "SKIP") else _details(result)
    if result["output"]:
        shown += (
            f"<details><summary>output</summary><pre>{escape(result['output'])}</pre></details>"
        )
    return (
        f'<tr><td class="status {status}">{status}</td>'
        f'<td class="name"><code>{escape(result["identifier"])}</code><br>'
        f"<small>{escape(result['title'])}</small></td>"
        f'<td>{shown}</td><td class="time">{result["seconds"]:.1f} s</td></tr>\n'
    )


def _details(result: Mapping[str, Any]) -> str:
    parts = [
        f"<dt>{name}</dt><dd>{escape(result[name])}</dd>"
        for name in ("have", "need", "why")
        if result[name]
    ]
    fix = f"<dt>fix</dt><dd><code>{escape(result['fix'])}</code></dd>" if result["fix"] else ""
    return f"<dl>{''.join(parts)}{fix}</dl>"


def _fact(name: str, value: Any) -> str:
    return f"<tr><th>{escape(name)}</th><td><code>{escape(str(value))}</code></td></tr>"
