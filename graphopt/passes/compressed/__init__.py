"""Helpers of passes over weights that are stored as codes."""
