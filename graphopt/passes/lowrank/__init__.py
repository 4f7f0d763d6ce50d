"""Helpers of factorize-lowrank."""
