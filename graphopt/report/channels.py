"""Families of channels for people: a table, and a graph of what makes and what reads each, as DOT and SVG."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.text import Text

from graphopt.report.console import table
from graphopt.report.units import format_count

if TYPE_CHECKING:
    from collections.abc import Mapping

    import networkx as nx
    from rich.console import RenderableType

_MOST_MEMBERS = 4  # named in the table; --json has all
_COLUMN, _ROW, _BOX, _HEIGHT, _MARGIN = 260, 46, 200, 30, 20  # pixels of the picture
_FILL = {
    "channels": "#cfe3f7",
    "heads": "#f9dcc4",
    "head_dims": "#fbeec1",
    "hidden": "#d4ecd2",
    "weight": "#ffffff",
}
_MOST_TEXT = 30


def channels_page(found: Mapping[str, Any]) -> RenderableType:
    """Return the tables of ``graphopt channels``: families with their cost, then locks."""
    rows = [
        (
            each["name"],
            each["kind"],
            str(each["units"]),
            "yes" if each["exact"] else "approximate",
            f"{each['macs_share']:.1%}",
            f"{each['parameters_share']:.1%}",
            _members(each["members"]),
        )
        for each in found["families"]
    ]
    heads = ("family", "kind", "units", "exact", "MACs", "parameters", "members")
    free = f"{len(rows)} families, {format_count(sum(each['units'] for each in found['families']))} units"
    parts: list[RenderableType] = [Text(f"{found['path']}: {free}", style="bold")]
    if rows:
        parts += [Text(), table(heads, rows, right=(2, 4, 5))]
    if found["locks"]:
        locks = [(each["where"], each["reason"]) for each in found["locks"]]
        parts += [Text(), table(("locked by", "why"), locks)]
    return Group(*parts)


def _members(members: list[dict[str, Any]]) -> str:
    """Name the weights that make a family and those that read it; count the others."""
    named = [each for each in members if each["role"] in {"producer", "consumer"}]
    shown = [f"{each['initializer']}[{each['axis']}]" for each in named[:_MOST_MEMBERS]]
    left = len(members) - len(shown)
    return ", ".join(shown) + (f" and {left} more" if left and shown else f"{left} weights" if left else "")


def channel_graph(found: Mapping[str, Any]) -> nx.DiGraph:
    """Return which weights make a family and which read it: edges weight -> family -> weight.

    Nodes have ``label``, ``kind`` ("weight" or the kind of the family), ``exact`` and ``title``.
    """
    import networkx as nx

    graph = nx.DiGraph()
    for family in found["families"]:
        name = f"family {family['name']}"
        followers = sum(each["role"] == "follower" for each in family["members"])
        graph.add_node(
            name,
            label=f"{_short(family['name'])} ({family['units']})",
            kind=family["kind"],
            exact=family["exact"],
            title=f"{family['name']}: {family['units']} {family['kind']}, {followers} weights follow",
        )
        for member in family["members"]:
            if member["role"] == "follower":
                continue
            weight = f"weight {member['initializer']}"
            title = f"{member['initializer']}, read by {member['node']}"
            label = _short(member["node"] or member["initializer"])
            graph.add_node(weight, label=label, kind="weight", exact=True, title=title)
            graph.add_edge(*((weight, name) if member["role"] == "producer" else (name, weight)))
    return graph


def to_dot(graph: nx.DiGraph) -> str:
    """Return *graph* in the language of Graphviz."""
    lines = ["digraph channels {", "  rankdir=LR;", '  node [fontname="sans-serif", fontsize=10];']
    for name, data in graph.nodes(data=True):
        shape = "box" if data["kind"] == "weight" else "ellipse"
        style = "filled" if data["exact"] else "filled,dashed"
        lines.append(
            f"  {_quoted(name)} [label={_quoted(data['label'])}, tooltip={_quoted(data['title'])},"
            f' shape={shape}, style="{style}", fillcolor="{_FILL.get(data["kind"], "#eeeeee")}"];'
        )
    lines += [f"  {_quoted(one)} -> {_quoted(two)};" for one, two in graph.edges]
    return "\n".join([*lines, "}"]) + "\n"


def to_svg(graph: nx.DiGraph) -> str:
    """Return *graph* as a picture: columns by the longest way to a node, rows in graph order."""
    places = _places(graph)
    width = max((x for x, _ in places.values()), default=0) + _BOX + _MARGIN
    height = max((y for _, y in places.values()), default=0) + _HEIGHT + _MARGIN
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}"',
        f' viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="11">',
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" markerHeight="7"',
        ' orient="auto"><path d="M0 0L8 4L0 8z" fill="#888"/></marker></defs>',
        f'<rect width="{width}" height="{height}" fill="#fdfdfd"/>',
    ]
    for one, two in graph.edges:
        (x1, y1), (x2, y2) = places[one], places[two]
        x1, y1, y2 = x1 + _BOX, y1 + _HEIGHT // 2, y2 + _HEIGHT // 2
        bend = max(40, (x2 - x1) // 2) if x2 >= x1 else 120
        parts.append(
            f'<path d="M{x1} {y1}C{x1 + bend} {y1} {x2 - bend} {y2} {x2} {y2}" fill="none" stroke="#aaa"'
            ' marker-end="url(#tip)"/>'
        )
    for name, data in graph.nodes(data=True):
        x, y = places[name]
        radius = 3 if data["kind"] == "weight" else _HEIGHT // 2
        dash = "" if data["exact"] else ' stroke-dasharray="4 3"'
        parts.append(
            f"<g><title>{escape(data['title'])}</title>"
            f'<rect x="{x}" y="{y}" width="{_BOX}" height="{_HEIGHT}"'
            f' rx="{radius}" fill="{_FILL.get(data["kind"], "#eeeeee")}" stroke="#555"{dash}/>'
            f'<text x="{x + _BOX // 2}" y="{y + _HEIGHT // 2 + 4}" text-anchor="middle">'
            f"{escape(data['label'])}</text></g>"
        )
    return "\n".join([*parts, "</svg>"]) + "\n"


def _places(graph: nx.DiGraph) -> dict[str, tuple[int, int]]:
    """Return the upper left corner of every node: its column is the longest way to it, loops apart."""
    import networkx as nx

    column: dict[str, int] = {}
    parts = nx.condensation(graph)  # recurrent weights read what they make
    for part in nx.topological_sort(parts):
        before = [
            column[name] + 1 for other in parts.predecessors(part) for name in parts.nodes[other]["members"]
        ]
        for name in parts.nodes[part]["members"]:
            column[name] = max(before, default=0)
    rows: dict[int, int] = {}
    places = {}
    for name in graph:
        row = rows.get(column[name], 0)
        rows[column[name]] = row + 1
        places[name] = (_MARGIN + column[name] * _COLUMN, _MARGIN + row * _ROW)
    return places


def _short(text: str) -> str:
    return text if len(text) <= _MOST_TEXT else f"...{text[3 - _MOST_TEXT :]}"


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
