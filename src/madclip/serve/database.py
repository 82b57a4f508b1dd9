"""A project's database: SQLite in write-ahead mode, brought up to date when it is opened."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from sqlalchemy import create_engine, event
from sqlalchemy.exc import DatabaseError, OperationalError
from sqlalchemy.orm import Session, sessionmaker

from madclip.errors import CheckpointError, DataError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sqlalchemy import Engine


class Database:
    """The database of one project, which one process writes to.

    Args:
        path: Its file, made where it is missing.

    Raises:
        CheckpointError: The file is damaged or of a newer version.
        DataError: It cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.engine = create_engine(f"sqlite:///{path}", connect_args={"timeout": 30, "check_same_thread": False})
        event.listen(self.engine, "connect", _prepare)
        self._session = sessionmaker(self.engine, expire_on_commit=False)
        self._writing = threading.RLock()
        self.generation = 0
        """Grows with every change, so that what was computed from the database is known to be old."""
        try:
            migrate(self.engine)
        except OperationalError as error:
            raise DataError(f"{path}: cannot be written ({error.orig})") from error
        except DatabaseError as error:
            raise CheckpointError(f"{path}: not a project's database, or damaged ({error.orig})") from error

    @contextmanager
    def look(self) -> Iterator[Session]:
        """A session that only reads."""
        with self._session() as session:
            yield session

    @contextmanager
    def change(self) -> Iterator[Session]:
        """A session whose changes are on disk at its end, all of them or, after an error, none; one at a time."""
        with self._writing, self._session() as session:
            yield session
            session.commit()
            self.generation += 1

    def settle(self) -> None:
        """Moves all changes from the write-ahead log to the database, so that nothing deleted stays in the log."""
        with self._writing, self.engine.connect() as connection:
            connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")

    def close(self) -> None:
        """Ends all connections."""
        self.engine.dispose()


def _prepare(connection: Any, _: Any) -> None:
    """What SQLite forgets between connections: what is committed survives a loss of power, what is deleted is gone."""
    pragmas = ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "secure_delete=ON", "busy_timeout=30000")
    for pragma in pragmas:
        connection.execute(f"PRAGMA {pragma}")


def migrate(engine: Engine) -> None:
    """Brings a database to the shape that this version has.

    Raises:
        CheckpointError: It is of a newer version.
    """
    from alembic import command
    from alembic.config import Config
    from alembic.util import CommandError

    settings = Config()
    settings.set_main_option("script_location", "madclip.serve:migrations")
    with engine.begin() as connection:
        settings.attributes["connection"] = connection
        try:
            command.upgrade(settings, "head")
        except CommandError as error:
            raise CheckpointError(f"{engine.url.database}: made by a newer madclip; update it ({error})") from error
