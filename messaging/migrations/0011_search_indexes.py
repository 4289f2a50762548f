from typing import Any

from django.db import migrations, models


def exists(schema_editor: Any, model: Any, index: str) -> bool:
    connection = schema_editor.connection
    with connection.cursor() as cursor:
        return index in connection.introspection.get_constraints(cursor, model._meta.db_table)


class AddIndexMeanwhile(migrations.AddIndex):
    """Adds an index while others write: PostgreSQL builds it CONCURRENTLY. If the migration was stopped half-way, the
    next `migrate` goes on; PostgreSQL then builds it anew, as it may be left half built."""

    def database_forwards(self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any) -> None:
        model = to_state.apps.get_model(app_label, self.model_name)
        if not self.allow_migrate_model(schema_editor.connection.alias, model):
            return
        if schema_editor.connection.vendor == 'postgresql':
            schema_editor.remove_index(model, self.index, concurrently=True)  # if it exists
            schema_editor.add_index(model, self.index, concurrently=True)
        elif not exists(schema_editor, model, self.index.name):
            schema_editor.add_index(model, self.index)


class RemoveIndexMeanwhile(migrations.RemoveIndex):
    """Removes an index without waiting for, or holding up, those who write."""

    def database_forwards(self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any) -> None:
        model = from_state.apps.get_model(app_label, self.model_name)
        if not self.allow_migrate_model(schema_editor.connection.alias, model):
            return
        index = from_state.models[app_label, self.model_name_lower].get_index_by_name(self.name)
        if schema_editor.connection.vendor == 'postgresql':
            schema_editor.remove_index(model, index, concurrently=True)
        elif exists(schema_editor, model, self.name):
            schema_editor.remove_index(model, index)


def by_beginning(*, model: str, column: str, name: str) -> AddIndexMeanwhile:
    index = models.Index(fields=[column], name=name, opclasses=['varchar_pattern_ops'])
    return AddIndexMeanwhile(model_name=model, index=index)


class Migration(migrations.Migration):
    # PostgreSQL builds no index CONCURRENTLY inside a transaction.
    atomic = False

    dependencies = [
        ('messaging', '0010_plain_words'),
    ]

    operations = [
        AddIndexMeanwhile(model_name='inboxmessage', index=models.Index(fields=['received_at'], name='inbox_received')),
        # The new ones are there before the old ones go: stories and replays find messages by them meanwhile.
        by_beginning(model='inboxmessage', column='message_id', name='inbox_message_id_begins'),
        by_beginning(model='inboxmessage', column='subject', name='inbox_subject_begins'),
        by_beginning(model='outboxmessage', column='message_id', name='outbox_message_id_begins'),
        by_beginning(model='outboxmessage', column='subject', name='outbox_subject_begins'),
        RemoveIndexMeanwhile(model_name='inboxmessage', name='inbox_message_id'),
        RemoveIndexMeanwhile(model_name='inboxmessage', name='inbox_subject'),
        RemoveIndexMeanwhile(model_name='outboxmessage', name='outbox_message_id'),
        RemoveIndexMeanwhile(model_name='outboxmessage', name='outbox_subject'),
    ]
