"""What onnxruntime's exceptions mean: one sentence and the right class for each refusal."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from graphopt.errors import (
    DataError,
    GraphoptError,
    InvalidModelError,
    PathError,
    ProviderError,
    UnsupportedModelError,
)

if TYPE_CHECKING:
    from graphopt.runtime.providers import Provider

_LONGEST = 300
_PREFIX = re.compile(r"^\[ONNXRuntimeError\] : \d+ : (?P<code>[A-Z_]+) : ", re.DOTALL)
_IR_VERSION = re.compile(r"Unsupported model IR version: (\d+), max supported IR version: (\d+)")
_OPSET = re.compile(
    r"Opset (\d+) is under development.*official support for domain (\S+) is till opset (\d+)", re.DOTALL
)
_NO_KERNEL = re.compile(r"Could not find an implementation for (\S+?)\((\d+)\) node with name '([^']*)'")
_NO_OPERATOR = re.compile(r"(?:Fatal error: )?(\S+?):(\S+?)\(-?\d+\) is not a registered function/op")
_NO_SCHEMA = re.compile(r"No Op registered for (\S+) with domain_version of (\d+)")
_AT_NODE = re.compile(
    r"Non-zero status code returned while running (\S+) node\. Name:'([^']*)' Status Message: "
)
_LOCATION = re.compile(r"\S+\.(?:cc|cpp|cxx|h|hpp):\d+ ")
_INVALID = (
    "This is an invalid model",
    "Type Error",
    "ShapeInferenceError",
    "TypeInferenceError",
    "Protobuf parsing failed",
    "protobuf parsing failed",
    "No graph was found",
    "is not a graph input, initializer, or output of a previous node",
    "Duplicate definition",
    "not in topological order",
    "External data",
    "external data",
    "cannot get file size",
)


def load_refusal(error: Exception, *, where: str, provider: Provider, version: str) -> GraphoptError:
    """Return what *error*, raised while a session was made, means to the user.

    Args:
        error: An exception of onnxruntime.
        where: The model, as the user knows it.
        provider: Whom the session was made for.
        version: The version of onnxruntime.
    """
    text = str(error)
    match = _PREFIX.match(text)
    code = match["code"] if match else ""
    runtime = f"onnxruntime {version}"
    if found := _IR_VERSION.search(text):
        return ProviderError(
            f"the model has IR version {found[1]}, {runtime} loads at most {found[2]}",
            where=where,
            hint="Use a newer onnxruntime, or export the model with an older IR version",
        )
    if found := _OPSET.search(text):
        return ProviderError(
            f"the model imports opset {found[1]} of {found[2]}, {runtime} loads at most {found[3]}",
            where=where,
            hint="Use a newer onnxruntime, or export the model with an older opset",
        )
    if found := _NO_KERNEL.search(text):
        node = f", which node {found[3]!r} needs" if found[3] else ""
        return ProviderError(
            f"{runtime} has no kernel of {found[1]} (version {found[2]}) for the provider {provider.name!r}"
            f" and these data types{node}",
            where=where,
        )
    if found := _NO_OPERATOR.search(text):
        return ProviderError(f"{runtime} has no operator {found[2]} of domain {found[1]!r}", where=where)
    if found := _NO_SCHEMA.search(text):
        return ProviderError(f"{runtime} knows no operator {found[1]} in opset {found[2]}", where=where)
    if code == "NO_SUCHFILE":
        return PathError("the file does not exist", where=where)
    if "not currently registered or supported" in text and "MLDataType" in text:
        return UnsupportedModelError(
            f"{runtime} lacks a data type of the model: {_sentence(text)}", where=where
        )
    if code in {"INVALID_GRAPH", "INVALID_PROTOBUF"} or any(sign in text for sign in _INVALID):
        return InvalidModelError(f"{runtime} finds the model invalid: {_sentence(text)}", where=where)
    return ProviderError(f"{runtime} refuses the model: {_sentence(text)}", where=where)


def run_refusal(error: Exception, *, where: str, provider: Provider, version: str) -> GraphoptError:
    """Return what *error*, raised while a session ran on feeds that fit its inputs, means to the user."""
    text = str(error)
    match = _PREFIX.match(text)
    code = match["code"] if match else ""
    if code in {"NOT_IMPLEMENTED", "EP_FAIL"}:
        return ProviderError(f"the provider {provider.name!r} failed: {_sentence(text)}", where=where)
    if "Failed to allocate memory" in text or "bad_alloc" in text:
        return ProviderError(f"onnxruntime {version} ran out of memory: {_sentence(text)}", where=where)
    return DataError(
        f"the model cannot run on this feed: {_sentence(text)}",
        where=where,
        hint="Give real inputs with --data, or bind its free dims with --dim",
    )


def _sentence(text: str) -> str:
    """Reduce a message to its content: no code, no C++ location and signature, one line, no full stop."""
    text = _AT_NODE.sub(r"\1 '\2': ", _PREFIX.sub("", " ".join(text.split())))
    while location := _LOCATION.search(text):
        before, rest = text[: location.start()], text[location.end() :]
        text = f"{before}{_behind_signature(rest)}"
    text = text.strip().rstrip(".:! ")
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


def _behind_signature(text: str) -> str:
    """Drop the C++ function signature that *text* begins with, up to the parenthesis that closes it."""
    depth = 0
    for position, character in enumerate(text):
        if character == "(":
            depth += 1
        elif character == ")":
            depth -= 1
            if depth == 0:
                return text[position + 1 :].removeprefix(" const").removeprefix(" mutable").lstrip()
    return text
