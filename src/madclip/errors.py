"""The one exception family of the package: each message says what was wrong, where, and what to do."""

from __future__ import annotations


class MadCLIPError(Exception):
    """Base of every error that a user can cause and can mend."""


class DataError(MadCLIPError):
    """An image, a mask, a manifest or a folder cannot be used."""


class RecipeError(MadCLIPError):
    """A recipe, an objective or another argument makes no sense."""


class CheckpointError(MadCLIPError):
    """Weights, a saved detector or a cache cannot be read, or do not belong together."""


class MissingExtraError(MadCLIPError):
    """An optional dependency is not installed; the message gives the command that installs it."""

    @classmethod
    def of(cls, what: str, extra: str, reason: str = "") -> MissingExtraError:
        """The error for an extra of this package.

        Args:
            what: What needs which library, as the start of a sentence.
            extra: Name of the extra in pyproject.toml.
            reason: What the import said.
        """
        said = f" ({reason})" if reason else ""
        return cls(f"{what}: pip install '.[{extra}]' in a copy of the repository{said}")


class MadCLIPWarning(UserWarning):
    """Something was assumed that no file says; the message gives what, and how to say it."""
