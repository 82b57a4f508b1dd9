"""Changes of the database's shape, in order; Alembic applies those that a project does not have yet."""
