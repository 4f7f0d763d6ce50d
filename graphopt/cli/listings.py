"""``graphopt passes``, ``plugins`` and ``targets``: what there is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Group
from rich.text import Text

from graphopt.cli.inputs import open_registry
from graphopt.cli.options import DebugOption, JsonOption, LocalPluginsOption
from graphopt.cli.output import Output

if TYPE_CHECKING:
    from graphopt.pipeline.plugins import Registry

NameArgument = Annotated[
    str | None, typer.Argument(metavar="[NAME]", show_default=False, help="Show this one in full.")
]


def register(app: typer.Typer) -> None:
    """Add the commands of this module to *app*."""
    app.command("passes")(passes)
    app.command("plugins")(plugins)
    app.command("targets")(targets)


def passes(
    name: NameArgument = None,
    *,
    local_plugins: LocalPluginsOption = None,
    json: JsonOption = False,
    debug: DebugOption = False,
) -> int:
    """List the passes, or show one with its options."""
    from graphopt.report.console import table

    del debug
    output = Output(json=json)
    registry = open_registry(local_plugins, output)
    if name is not None:
        found = _pass(registry, name)
        output.show(_pass_page(found))
        if output.json:
            output.document({"schema": 1, "command": "passes", "pass": found})
        return 0
    listed = [_pass(registry, each) for each in registry.passes]
    output.show(table(("pass", "what it does"), [(each["name"], each["summary"]) for each in listed]))
    gates = [{"name": each, "summary": registry.gates[each].summary} for each in registry.gates]
    if gates:
        output.show(Text())
        output.show(
            table(("gate (in recipes)", "what it does"), [(each["name"], each["summary"]) for each in gates])
        )
    if output.json:
        output.document({"schema": 1, "command": "passes", "passes": listed, "gates": gates})
    return 0


def plugins(
    *, local_plugins: LocalPluginsOption = None, json: JsonOption = False, debug: DebugOption = False
) -> int:
    """List the plugins, what they register, and why one is not active."""
    from graphopt.report.console import status, table
    from graphopt.runtime.providers import installation_warnings, runtime_versions

    del debug
    output = Output(json=json)
    registry = open_registry(local_plugins, output)
    warnings = installation_warnings()
    for warning in warnings:
        output.warning(warning)
    rows = []
    for plugin in registry.plugins:
        offers = "; ".join(
            f"{kind.replace('_', ' ')}: {', '.join(names)}" for kind, names in plugin.registers.items()
        )
        rows.append(
            (
                plugin.name,
                plugin.version or "-",
                plugin.origin,
                status(plugin.status),
                plugin.reason or offers,
            )
        )
    output.show(table(("plugin", "version", "from", "status", "registers, or why not"), rows))
    if output.json:
        output.document(
            {
                "schema": 1,
                "command": "plugins",
                "plugins": [
                    {
                        "name": plugin.name,
                        "version": plugin.version,
                        "origin": plugin.origin,
                        "status": plugin.status,
                        "reason": plugin.reason,
                        "registers": {kind: list(names) for kind, names in plugin.registers.items()},
                    }
                    for plugin in registry.plugins
                ],
                "onnxruntime": runtime_versions(),
                "warnings": [*registry.warnings, *warnings],
            }
        )
    return 0


def targets(
    name: NameArgument = None,
    *,
    local_plugins: LocalPluginsOption = None,
    json: JsonOption = False,
    debug: DebugOption = False,
) -> int:
    """List the targets, or show one with its rules and where each comes from."""
    from graphopt.report.console import table
    from graphopt.report.targets import target_page
    from graphopt.runtime.providers import available
    from graphopt.targets import known_targets, load_target

    del debug
    output = Output(json=json)
    registry = open_registry(local_plugins, output)
    extra = dict(registry.targets)
    if name is not None:
        target = load_target(name, extra, where="")
        output.show(target_page(target, here=target.provider in available()))
        if output.json:
            output.document({"schema": 1, "command": "targets", "target": target.model_dump(mode="json")})
        return 0
    offered = available()
    listed = [load_target(each, extra) for each in known_targets(extra)]
    output.show(
        table(
            ("target", "provider", "here", "what it is"),
            [
                (each.name, each.provider, "yes" if each.provider in offered else "no", each.summary)
                for each in listed
            ],
        )
    )
    if output.json:
        output.document(
            {
                "schema": 1,
                "command": "targets",
                "targets": [
                    {
                        "name": each.name,
                        "summary": each.summary,
                        "provider": each.provider,
                        "available": each.provider in offered,
                    }
                    for each in listed
                ],
            }
        )
    return 0


def _pass(registry: Registry, name: str) -> dict[str, Any]:
    """Return what there is to say about a pass, ready for JSON."""
    from graphopt.pipeline.options import describe_options

    found = registry.passes.find(name)
    info = found.info
    return {
        "name": info.name,
        "summary": info.summary,
        "owner": registry.passes.owner(name),
        "requires": sorted(info.requires),
        "provides": sorted(info.provides),
        "conflicts": sorted(info.conflicts),
        "preserves": sorted(info.preserves),
        "min_opset": info.min_opset,
        "options": describe_options(found.Options),
    }


def _pass_page(found: dict[str, Any]) -> Group:
    from graphopt.report.console import table

    facts = [
        f"{label} {', '.join(found[key])}"
        for key, label in (("requires", "needs"), ("provides", "provides"), ("conflicts", "conflicts with"))
        if found[key]
    ]
    if found["min_opset"] > 1:
        facts.append(f"needs opset {found['min_opset']}")
    parts: list[Any] = [
        Text.assemble((found["name"], "bold"), f": {found['summary']}"),
        Text(f"from {found['owner']}{'; ' if facts else ''}{'; '.join(facts)}", style="dim"),
    ]
    if found["options"]:
        rows = [
            (option["name"], option["type"], option["default"], option["description"])
            for option in found["options"]
        ]
        parts += [Text(), table(("option", "type", "default", "what it means"), rows)]
    else:
        parts.append(Text("it takes no options", style="dim"))
    return Group(*parts)
