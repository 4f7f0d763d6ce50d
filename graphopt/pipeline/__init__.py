"""Pipelines: text and recipes, the plan, the manager, plugins."""
