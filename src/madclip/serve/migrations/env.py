"""Alembic runs this for every change; the connection comes from `madclip.serve.database`."""

from alembic import context

from madclip.serve.tables import Base

connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=Base.metadata, render_as_batch=True)
with context.begin_transaction():
    context.run_migrations()
