"""The outbox's tables in a project's own Alembic migrations."""

from typing import Any

import pytest
from alembic.autogenerate import compare_metadata, produce_migrations, render_python_code
from alembic.migration import MigrationContext
from alembic.operations import Operations
from sqlalchemy import Column, Connection, Integer, MetaData, String, Table, text

from openviper import db
from openviper.db.outbox import outbox_tables
from openviper.db.outbox.tables import missing_tables

pytestmark = pytest.mark.usefixtures("database")

NAMING = {
    "ix": "ix_%(column_0_label)s",
    "uq": "uq_%(table_name)s_%(column_0_name)s",
    "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}


def shop_metadata(**options: Any) -> MetaData:
    metadata = MetaData(**options)
    Table("orders", metadata, Column("id", Integer, primary_key=True), Column("email", String(200)))
    outbox_tables(metadata)
    return metadata


def compare(connection: Connection, metadata: MetaData) -> list[Any]:
    options = {"compare_type": True, "compare_server_default": True}
    return list(compare_metadata(MigrationContext.configure(connection, opts=options), metadata))


def upgrade(connection: Connection, metadata: MetaData) -> str:
    """Generate a revision as ``alembic revision --autogenerate`` does, run its upgrade, and return the code."""
    context = MigrationContext.configure(connection)
    script = produce_migrations(context, metadata)
    assert script.upgrade_ops is not None
    code = render_python_code(script.upgrade_ops)
    lines = "\n".join(f"    {line}" for line in code.splitlines())
    names: dict[str, Any] = {}
    exec(f"import sqlalchemy as sa\ndef upgrade(op):\n{lines}\n", names)
    names["upgrade"](Operations(context))
    return code


@pytest.mark.parametrize("options", [{}, {"naming_convention": NAMING}], ids=["plain", "naming"])
async def test_a_generated_migration_creates_the_tables_and_the_next_one_is_empty(options: dict[str, Any]) -> None:
    metadata = shop_metadata(**options)
    engine = await db.engine()
    async with engine.begin() as connection:
        code = await connection.run_sync(upgrade, metadata)
    assert "email_outbox_due" in code
    assert await missing_tables(engine) == []
    async with engine.connect() as connection:
        assert await connection.run_sync(compare, metadata) == []


async def test_tables_that_the_command_has_created_give_no_diff() -> None:
    metadata = shop_metadata()
    async with (await db.engine()).begin() as connection:
        await connection.run_sync(metadata.create_all)
        assert await connection.run_sync(compare, metadata) == []


async def test_without_them_in_the_metadata_a_generated_migration_would_drop_them() -> None:
    async with (await db.engine()).begin() as connection:
        await connection.run_sync(shop_metadata().create_all)
        diff = await connection.run_sync(compare, MetaData())
    dropped = {entry[1].name for entry in diff if entry[0] == "remove_table"}
    assert {"email_outbox", "email_outbox_part", "email_key", "email_meta"} <= dropped


async def test_on_postgresql_a_generated_migration_leaves_out_the_vacuum_settings(database_url: str) -> None:
    """Alembic renders no listeners: the page gives the statement to add to the migration."""
    metadata = shop_metadata()
    async with (await db.engine()).begin() as connection:
        await connection.run_sync(upgrade, metadata)
        if not database_url.startswith("postgresql"):
            return
        options = text("SELECT reloptions FROM pg_class WHERE relname = 'email_outbox'")
        assert (await connection.execute(options)).scalar() is None
