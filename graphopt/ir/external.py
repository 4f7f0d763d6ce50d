"""External tensor data: which paths are allowed, and copying bytes without mapping them."""

from __future__ import annotations
