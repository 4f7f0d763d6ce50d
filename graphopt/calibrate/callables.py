"""Feeds from Python: ``module:function`` names a function without arguments that returns feeds."""

from __future__ import annotations

import hashlib
import importlib
import re
import sys
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt.errors import DataError, OptionError
from graphopt.runtime.feeds import check_feeds

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from graphopt.runtime.feeds import Feed, InputSpec

_PATTERN = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def names_callable(text: str) -> bool:
    """Return whether *text* reads ``module:function``; drive letters of paths do not."""
    return _PATTERN.fullmatch(text) is not None and not Path(text).exists()


class CallableSource:
    """Feeds that a function of the user yields; it is called anew for every pass over them.

    Args:
        text: ``module:function``. The module is looked for in the working directory too.
        specs: Inputs of the model.
        samples: Take the first so many; None takes all.
    """

    def __init__(self, text: str, specs: Sequence[InputSpec], samples: int | None) -> None:
        self.warnings: tuple[str, ...] = ()
        self._text = text
        self._samples = samples
        self._function = _resolve(text)
        total = hashlib.sha256()
        self._count = 0
        for feed in self:
            check_feeds(feed, tuple(specs), where=f"feed {self._count} of {text}")
            for name in sorted(feed):
                total.update(name.encode() + b"\0")
                _add(total, feed[name])
            self._count += 1
        if not self._count:
            raise DataError("the function yields no feeds", where=text)
        self.identity = f"callable:{total.hexdigest()[:32]}"

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Feed]:
        try:
            given = self._function()
            for feed in islice(given, self._samples):
                yield dict(feed)
        except DataError:
            raise
        except Exception as error:
            raise DataError(
                f"the function failed: {type(error).__name__}: {error}",
                where=self._text,
                hint="It takes no arguments and returns an iterable of dicts of arrays by input name",
            ) from error


def _resolve(text: str) -> Callable[[], Iterable[Feed]]:
    module_name, _, name = text.partition(":")
    added = str(Path.cwd())
    sys.path.insert(0, added)
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise OptionError(
            f"the module {module_name!r} cannot be imported ({error})", where="--data"
        ) from error
    except Exception as error:
        raise DataError(
            f"the module {module_name!r} failed while it was imported: {type(error).__name__}: {error}",
            where="--data",
        ) from error
    finally:
        sys.path.remove(added)
    function: Any = getattr(module, name, None)
    if not callable(function):
        raise OptionError(f"the module {module_name!r} has no function {name!r}", where="--data")
    return function  # type: ignore[no-any-return]  # what it returns is checked feed by feed


def _add(total: Any, value: object) -> None:  # noqa: ANN401 - a hash object
    if isinstance(value, list):
        for item in value:
            _add(total, item)
    elif isinstance(value, np.ndarray):
        total.update(f"{value.dtype} {value.shape}".encode())
        total.update(
            repr(value.tolist()).encode() if value.dtype == object else np.ascontiguousarray(value).tobytes()
        )
