"""Executors: the same work on one process or on many, here and, behind the same interface, elsewhere."""
