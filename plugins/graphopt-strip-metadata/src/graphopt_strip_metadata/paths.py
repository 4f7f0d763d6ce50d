"""What counts as a path of the machine on which a model was exported."""

from __future__ import annotations

import re

_PART = r"[^\s\"'<>|:*?,;()\\/]+"
_SOURCE = r"(?:py|pyx|pyi|ipynb|c|cc|cpp|cxx|cu|cuh|h|hpp|rs|java|m|mm)"
# A file of source code with at least one folder before it. Scopes such as "/layers/0/conv/Conv" have no
# such ending and do not count.
_SOURCE_FILE = re.compile(rf"(?:[A-Za-z]:)?[\\/]?(?:{_PART}[\\/])+{_PART}\.{_SOURCE}(?![\w.])")
_HOME = re.compile(rf"(?:/home|/Users|/root|[A-Za-z]:\\Users)(?:[\\/]{_PART})+")


def source_files(text: str) -> list[str]:
    """Return the paths of source files that *text* names.

    >>> source_files('File "/home/me/net.py", line 3, in forward')
    ['/home/me/net.py']
    >>> source_files("/layers/0/conv/Conv")
    []
    """
    return [match.group() for match in _SOURCE_FILE.finditer(text)]


def machine_paths(text: str) -> list[str]:
    r"""Return the paths of source files and below home folders that prose in *text* names.

    >>> machine_paths(r"saved to C:\Users\me\out, see /home/me/readme")
    ['C:\\Users\\me\\out', '/home/me/readme']
    """
    files = source_files(text)
    return files + [path for path in (m.group() for m in _HOME.finditer(text)) if path not in files]
