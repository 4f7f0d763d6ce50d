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
# Pixels of the picture.
_COLUMN, _LANE, _LEFT, _RIGHT, _TOP, _MARGIN = 24, 24, 240, 110, 190, 20
_STROKE = {"channels": "#2f6fad", "heads": "#c2571a", "head_dims": "#a8860b", "hidden": "#2e7d32"}
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

    Nodes have ``label``, ``kind`` ("weight" or the kind of the family), ``exact`` and ``title``; weights also
    their ``position`` in the graph.
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
            graph.add_node(
                weight, label=label, kind="weight", exact=True, title=title, position=member["position"]
            )
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
    """Return *graph* as a picture that needs no other program.

    A column for each weight, in graph order, and a lane for each family from the first to the last weight
    that it runs through: full dots make its channels, rings read them. Approximate families are dashed.
    Streams with residuals are cyclic, so that boxes and arrows would be a knot.
    """
    weights = sorted(
        (name for name, data in graph.nodes(data=True) if data["kind"] == "weight"),
        key=lambda name: (graph.nodes[name]["position"], name),
    )
    column = {name: _LEFT + _COLUMN * index for index, name in enumerate(weights)}
    families = [name for name, data in graph.nodes(data=True) if data["kind"] != "weight"]
    lane = {name: _TOP + _LANE * index for index, name in enumerate(families)}
    width = _LEFT + _COLUMN * len(weights) + _RIGHT
    height = _TOP + _LANE * len(families) + _MARGIN
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}"',
        f' viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="11">',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
    ]
    for name in weights:
        x, data = column[name], graph.nodes[name]
        parts.append(
            f'<g class="weight"><title>{escape(data["title"])}</title>'
            f'<path d="M{x} {_TOP - 14}V{height - _MARGIN}" stroke="#e4e4e4"/>'
            f'<text transform="translate({x + 3} {_TOP - 18}) rotate(-60)">{escape(data["label"])}</text></g>'
        )
    parts += [_lane(graph, name, lane[name], column) for name in families]
    return "\n".join([*parts, "</svg>"]) + "\n"


def _lane(graph: nx.DiGraph, name: str, y: int, column: Mapping[str, int]) -> str:
    """Return one family: its name, its line, and a mark at each weight."""
    data = graph.nodes[name]
    colour = _STROKE.get(data["kind"], "#777777")
    made, read = list(graph.predecessors(name)), list(graph.successors(name))
    places = [column[each] for each in (*made, *read)]
    dash = "" if data["exact"] else ' stroke-dasharray="6 4"'
    parts = [
        f'<g class="family"><title>{escape(data["title"])}</title>',
        f'<text x="{_LEFT - 14}" y="{y + 4}" text-anchor="end">{escape(data["label"])}</text>',
    ]
    if places:
        parts.append(f'<path d="M{min(places)} {y}H{max(places)}" stroke="{colour}" stroke-width="3"{dash}/>')
    parts += [f'<circle cx="{column[each]}" cy="{y}" r="5" fill="{colour}"/>' for each in made]
    parts += [
        f'<circle cx="{column[each]}" cy="{y}" r="4" fill="#ffffff" stroke="{colour}" stroke-width="2"/>'
        for each in read
    ]
    return "".join([*parts, "</g>"])


def _short(text: str) -> str:
    return text if len(text) <= _MOST_TEXT else f"...{text[3 - _MOST_TEXT :]}"


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
