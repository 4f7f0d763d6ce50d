"""``graphopt passes``, ``plugins`` and ``targets``: what there is to name."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from graphopt.cli.options import AsJson, Debug, LocalPlugins
from graphopt.cli.session import Session

if TYPE_CHECKING:
    from graphopt.api import Pass
    from graphopt.pipeline.plugins import Registry


def passes(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Show this pass.")] = None,
    local_plugins: LocalPlugins = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """List the passes, or the options of one."""
    with Session("passes", as_json=as_json, debug=debug) as session:
        from graphopt.report.console import fields, table

        registry = _registry(session, local_plugins)
        names = sorted(registry.passes) if name is None else [name]
        found = [_describe(each, registry.passes.find(each), registry) for each in names]
        session.record.extra["passes"] = found
        if name is None:
            session.show(table(("pass", "what it does"), [(each["name"], each["summary"]) for each in found]))
            session.show(Text("graphopt passes NAME shows the options of one.", style="dim"))
            return
        one = found[0]
        facts = [("pass", one["name"]), ("does", one["summary"]), ("from", one["owner"])]
        facts += [(key, ", ".join(one[key])) for key in ("requires", "provides", "conflicts") if one[key]]
        if one["min_opset"] > 1:
            facts.append(("opset", f"{one['min_opset']} or higher"))
        session.show(fields(facts))
        if one["options"]:
            rows = [
                (each["name"], each["type"], each["default"], each["description"]) for each in one["options"]
            ]
            session.show(Text(), table(("option", "type", "default", "meaning"), rows))
        else:
            session.show(Text("It takes no options.", style="dim"))


def plugins(local_plugins: LocalPlugins = None, as_json: AsJson = False, debug: Debug = False) -> None:
    """List the plugins, what they add, and why one is not active."""
    with Session("plugins", as_json=as_json, debug=debug) as session:
        from graphopt.report.console import status, table
        from graphopt.runtime.providers import installation_warnings

        registry = _registry(session, local_plugins)
        session.record.warnings += installation_warnings()
        session.record.extra["plugins"] = [
            {
                "name": each.name,
                "version": each.version,
                "origin": each.origin,
                "status": each.status,
                "reason": each.reason,
                "registers": {kind: list(names) for kind, names in each.registers.items()},
            }
            for each in registry.plugins
        ]
        rows = []
        for each in registry.plugins:
            adds = "; ".join(
                f"{kind.replace('_', ' ')}: {', '.join(names)}" for kind, names in each.registers.items()
            )
            rows.append(
                (each.name, each.version or "-", each.origin, status(each.status), each.reason or adds)
            )
        session.show(table(("plugin", "version", "from", "status", "what it adds, or why not"), rows))


def targets(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Show this target.")] = None,
    local_plugins: LocalPlugins = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """List the targets, or the limits of one."""
    with Session("targets", as_json=as_json, debug=debug) as session:
        from graphopt.report.console import fields, table
        from graphopt.runtime.providers import available, runtime_version
        from graphopt.targets import known_targets, load_target

        extra = dict(_registry(session, local_plugins).targets)
        names = known_targets(extra) if name is None else (name,)
        found = [load_target(each, extra) for each in names]
        session.record.extra["targets"] = [each.model_dump(mode="json") for each in found]
        if name is None:
            here = available()
            rows = [
                (each.name, each.provider, "yes" if each.provider in here else "no", each.summary)
                for each in found
            ]
            session.show(table(("target", "provider", "installed", "what it is"), rows))
            return
        one = found[0]
        running = one.runtime_limits_for(runtime_version())
        session.show(
            fields([
                ("target", one.name),
                ("is", one.summary),
                ("provider", one.provider),
                ("installed", f"onnxruntime {runtime_version()}: IR up to {running.max_ir_version},"
                 f" opset up to {running.max_opset}"),
                *((f"source of {key}", text) for key, text in one.sources.items()),
            ])
        )  # fmt: skip
        limits = [
            (each.release, str(each.max_ir_version), str(each.max_opset), str(each.max_ml_opset))
            for each in one.runtime_limits
        ]
        session.show(Text(), table(("onnxruntime", "IR", "opset", "ai.onnx.ml"), limits, right=(1, 2, 3)))


def _registry(session: Session, local: str | None) -> "Registry":
    from graphopt.pipeline.plugins import load_plugins

    session.registry = load_plugins(None if local is None else Path(local))
    session.record.warnings += session.registry.warnings
    return session.registry


def _describe(name: str, found: "type[Pass]", registry: "Registry") -> dict[str, Any]:
    from graphopt.pipeline.options import expected, printed

    info = found.info
    options = []
    for key, field in found.Options.model_fields.items():
        if field.is_required():
            default = "required"
        else:
            text = printed(field.get_default(call_default_factory=True))
            default = text if isinstance(text, str) else f"[{','.join(text)}]"
        options.append({
            "name": key,
            "type": expected(field.annotation),
            "default": default,
            "description": field.description or "",
        })  # fmt: skip
    return {
        "name": name,
        "summary": info.summary,
        "owner": registry.passes.owner(name),
        "requires": sorted(info.requires),
        "provides": sorted(info.provides),
        "conflicts": sorted(info.conflicts),
        "preserves": sorted(info.preserves),
        "min_opset": info.min_opset,
        "options": options,
    }
