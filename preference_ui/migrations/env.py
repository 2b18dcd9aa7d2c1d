"""Alembic's entry: it runs on the connection that the store hands over, inside the store's own transaction."""

from alembic import context

from preference_ui.store.schema import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata, transactional_ddl=True)
with context.begin_transaction():
    context.run_migrations()
