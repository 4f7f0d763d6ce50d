"""Renderings of a run's record: JSON, Markdown, and tables for a terminal.

Reporters only render; what happened is decided and recorded below this floor.
"""
