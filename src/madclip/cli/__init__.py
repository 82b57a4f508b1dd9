"""The command line, thin: parses, calls, prints. One file for each group of commands."""

from madclip.cli.app import app, main

__all__ = ["app", "main"]
