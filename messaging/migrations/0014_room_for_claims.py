from typing import Any

from django.db import migrations, router


def leave_room(apps: Any, schema_editor: Any) -> None:
    _set(apps, schema_editor, 'SET (fillfactor = 60)')


def leave_none(apps: Any, schema_editor: Any) -> None:
    _set(apps, schema_editor, 'RESET (fillfactor)')


def _set(apps: Any, schema_editor: Any, change: str) -> None:
    """Change how full PostgreSQL makes new pages of the outbox: in its catalogue only, while others read and write.

    There is then room to write a claimed row again on its own page, and the indexes need no new entries for it.
    """
    model = apps.get_model('messaging', 'OutboxMessage')
    alias = schema_editor.connection.alias
    if schema_editor.connection.vendor == 'postgresql' and router.allow_migrate_model(alias, model):
        schema_editor.execute(f'ALTER TABLE {schema_editor.quote_name(model._meta.db_table)} {change}')


class Migration(migrations.Migration):

    dependencies = [
        ('messaging', '0013_one_row_for_a_success'),
    ]

    operations = [
        migrations.RunPython(leave_room, leave_none),
    ]
