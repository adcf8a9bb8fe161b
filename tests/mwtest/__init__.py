"""Helpers shared by the Python tests: build tree, network namespaces, bounded processes."""
