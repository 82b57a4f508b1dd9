"""The templates, styles and scripts of this room, and what every page has in common."""

from __future__ import annotations

import base64
import hashlib
from datetime import UTC, datetime
from importlib import resources
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from jinja2 import Template


def page_part(name: str) -> str:
    """A style, script or template of this room."""
    return resources.files(__package__).joinpath(name).read_text("utf-8")


def template(name: str, **filters: Callable[..., str]) -> Template:
    """A template of this room, with filters of its own; whatever it is given is escaped, and nothing may be missing."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(filters)
    return environment.from_string(page_part(name))


def source_hash(text: str) -> str:
    """What a content security policy knows a style or script by."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def computed(date: datetime | None) -> str:
    """When something was computed, in words; None is now."""
    return f"{(date or datetime.now(UTC)).astimezone(UTC):%Y-%m-%d %H:%M} UTC"
