"""The HTML of reports and dump indexes: Jinja templates that load nothing from anywhere, one look for both."""

from __future__ import annotations

from typing import Any

STYLE = """
.svg-page { --ink: #1f2328; --soft: #59636e; --line: #d8dee4; --back: #ffffff; --panel: #f6f8fa;
  --go: #1a7f37; --go-back: #dafbe1; --keep: #59636e; --keep-back: #eaeef2; --warn: #9a6700; --warn-back: #fff8c5;
  --bar: #0969da; --bar-soft: #b6d5f7;
  color: var(--ink); background: var(--back); font: 15px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif;
  max-width: 84em; margin: 0 auto; padding: 1.5em 1.2em 3em }
@media (prefers-color-scheme: dark) { .svg-page { --ink: #e6edf3; --soft: #9198a1; --line: #30363d; --back: #0d1117;
  --panel: #151b23; --go: #57c46d; --go-back: #12361f; --keep: #b1bac4; --keep-back: #262c36; --warn: #e3b341;
  --warn-back: #3a2d05; --bar: #4493f8; --bar-soft: #1f3a5f } html:has(.svg-page) { background: #0d1117 } }
.svg-page h1 { font-size: 1.5em; margin: 0 0 .2em } .svg-page h2 { font-size: 1.1em; margin: 2em 0 .6em }
.svg-page .soft, .svg-page p.soft { color: var(--soft) }
.svg-page .tiles { display: flex; flex-wrap: wrap; gap: .8em; margin: 1.2em 0 }
.svg-page .tile { background: var(--panel); border: 1px solid var(--line); border-radius: 8px; padding: .7em 1em;
  min-width: 9em }
.svg-page .tile b { display: block; font-size: 1.45em; font-variant-numeric: tabular-nums }
.svg-page .tile span { color: var(--soft); font-size: .87em }
.svg-page .scroll { overflow-x: auto }
.svg-page table { border-collapse: collapse; width: 100%; font-size: .92em; text-align: left }
.svg-page th { color: var(--soft); font-weight: 600; border-bottom: 2px solid var(--line); padding: .35em .8em .35em 0;
  text-align: left; white-space: nowrap }
.svg-page td { border-bottom: 1px solid var(--line); padding: .4em .8em .4em 0; vertical-align: top;
  text-align: left; font-variant-numeric: tabular-nums }
.svg-page tr { background: none }
.svg-page code, .svg-page pre { font: .92em/1.5 ui-monospace, "Cascadia Mono", Menlo, Consolas, monospace }
.svg-page td code { overflow-wrap: anywhere }
.svg-page td.wide { min-width: 24em } .svg-page td.tight { white-space: nowrap }
.svg-page td.name { min-width: 11em }
.svg-page pre { background: var(--panel); border: 1px solid var(--line); border-radius: 8px; padding: .9em 1em;
  overflow-x: auto; font-size: .82em }
.svg-page .badge { display: inline-block; border-radius: 1em; padding: 0 .7em; font-size: .88em; white-space: nowrap;
  color: var(--keep); background: var(--keep-back) }
.svg-page .badge.go { color: var(--go); background: var(--go-back) }
.svg-page .badge.warn { color: var(--warn); background: var(--warn-back) }
.svg-page .bars { display: grid; grid-template-columns: max-content 1fr max-content; gap: .4em .8em;
  align-items: center; font-size: .92em }
.svg-page .bar { display: flex; height: 1.1em; border-radius: 4px; overflow: hidden }
.svg-page .bar i { display: block; background: var(--bar) } .svg-page .bar i.rest { background: var(--bar-soft) }
.svg-page .key i { display: inline-block; width: .8em; height: .8em; border-radius: 2px; background: var(--bar);
  margin: 0 .35em 0 0 } .svg-page .key i.rest { background: var(--bar-soft); margin-left: 1em }
.svg-page details { margin: 1em 0 } .svg-page summary { cursor: pointer; font-weight: 600 }
.svg-page .note { background: var(--warn-back); color: var(--warn); border-radius: 8px; padding: .5em .9em;
  margin: .6em 0 }
.svg-page a { color: var(--bar) } .svg-page ol, .svg-page ul { padding-left: 1.6em }
"""

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<link rel="icon" href="data:,">
<style>body { margin: 0 }{{ style }}</style>
</head>
<body>
{{ body }}
</body>
</html>
"""

REPORT = """<div class="svg-page">
{% if heading %}<h1>{{ heading }}</h1>{% endif %}
<p class="soft">{{ headline }}</p>
<div class="tiles">
{% for figure, label in tiles %}<div class="tile"><b>{{ figure }}</b><span>{{ label }}</span></div>
{% endfor %}</div>
{% for note in notes %}<div class="note">{{ note }}</div>{% endfor %}
{% if rows %}<h2>Attention</h2>
<div class="scroll"><table>
<tr><th>layer</th><th>source</th><th>B x H x D</th><th>tokens</th><th>sequence</th><th>decision</th></tr>
{% for row in rows %}<tr>
<td class="name"><code>{{ row.cells[0] }}</code></td>
<td class="name"><code title="{{ row.source }}">{{ row.cells[1] }}</code></td>
<td class="tight">{{ row.cells[2] }}</td><td class="tight">{{ row.cells[3] }}</td>
<td class="tight"><code>{{ row.cells[4] }}</code></td>
<td class="wide"><span class="badge {{ row.badge }}">{{ row.verdict }}</span>{% if row.why %} {{ row.why }}
<div class="soft">{{ row.remedy }}</div>{% endif %}</td></tr>
{% endfor %}</table></div>{% endif %}
{% if bars %}<h2>Arithmetic of one forward</h2>
<div class="bars">{% for bar in bars %}<span>{{ bar.name }}</span>
<span class="bar"><i style="width:{{ bar.attention }}%"></i><i class="rest" style="width:{{ bar.rest }}%"></i></span>
<span>{{ bar.text }}</span>{% endfor %}</div>
<p class="soft key"><i></i>attention<i class="rest"></i>everything else. A speedup read from this is a bound: memory
and launches come on top.</p>{% endif %}
{% if bands %}<h2>Density</h2>
<div class="scroll"><table>
<tr><th>sequence</th><th>density asked</th><th>reached, half-width in blocks</th><th></th></tr>
{% for band in bands %}<tr>{% for cell in band %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</table></div>{% endif %}
{% if breaks %}<h2>Graph breaks</h2>
<ul>{% for each in breaks %}<li><b>{{ each.reason }}</b>{% if each.count > 1 %} ({{ each.count }}x){% endif %}
{% if each.source %}<code>{{ each.source }}</code>{% endif %}
{% if each.explanation %}<br>{{ each.explanation }}{% endif %}
{% if each.hint %}<div class="soft">{{ each.hint }}</div>{% endif %}</li>
{% endfor %}</ul>
<p class="soft">Attention that runs between graphs is not in the table: it stays dense.</p>{% endif %}
{% if rows %}<details><summary>Where each attention is called</summary>
<div class="scroll"><table>
<tr><th>layer</th><th>source lines, outermost first</th></tr>
{% for row in rows %}<tr><td><code>{{ row.cells[0] }}</code></td>
<td>{% for line in row.stack %}<code title="{{ line.full }}">{{ line.short }}</code><br>{% endfor %}</td></tr>
{% endfor %}</table></div></details>{% endif %}
</div>
"""

DUMP_INDEX = """<div class="svg-page">
<h1>svg_compile graph dump</h1>
<p class="soft">process {{ pid }}, {{ graphs|length }} graph{{ "" if graphs|length == 1 else "s" }}, numbered as they
were compiled; the files of a graph stand in the order in which the passes ran</p>
{% for graph in graphs %}
<h2>{{ graph.name }}</h2>
{% if graph.summary %}<pre>{{ graph.summary }}</pre>{% endif %}
{% for note in graph.notes %}<div class="note">{{ note }}</div>{% endfor %}
<div class="scroll"><table>
<tr><th>file</th><th>what is in it</th><th>size</th></tr>
{% for file, size, what in graph.files %}
<tr><td><a href="{{ graph.name }}/{{ file }}">{{ file }}</a></td><td>{{ what }}</td><td>{{ size }}</td></tr>
{% endfor %}</table></div>
{% if graph.counts %}<details><summary>Operators that were added or went</summary><pre>{{ graph.counts }}</pre>
</details>{% endif %}
{% endfor %}
</div>
"""


def fill(template: str, **values: Any) -> str:
    """A template with its values, each escaped."""
    import jinja2

    return jinja2.Environment(autoescape=True).from_string(template).render(**values)


def page(title: str, body: str) -> str:
    """A whole page around a body that `fill` made."""
    from markupsafe import Markup

    # Both are ours: what came from outside was escaped when the body was filled.
    inner = {"style": Markup(STYLE), "body": Markup(body)}
    return fill(_PAGE, title=title, **inner)


def fragment(body: str) -> str:
    """A body with its style, to stand inside of somebody else's page."""
    return f"<style>{STYLE}</style>{body}"
