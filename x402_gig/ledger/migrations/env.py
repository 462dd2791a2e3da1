"""Alembic's entry point: migrations run on the connection that `ledger.schema.migrate` opened."""

from alembic import context

from x402_gig.ledger.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata, render_as_batch=True)
with context.begin_transaction():
    context.run_migrations()
