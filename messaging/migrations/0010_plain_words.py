from typing import Any

from django.db import migrations, router

# Django creates permissions, and leaves the names of existing ones as they are.
NAMES = {
    'replay_message': 'Can replay dead messages and publish waiting ones now',
    'settle_effect': 'Can record the outcome of an effect whose result is unknown',
}


def rename_permissions(apps: Any, schema_editor: Any) -> None:
    try:
        Permission = apps.get_model('auth', 'Permission')
    except LookupError:
        return  # a project without django.contrib.auth
    alias = schema_editor.connection.alias
    if router.allow_migrate_model(alias, Permission):
        for codename, name in NAMES.items():
            of_messaging = Permission.objects.using(alias).filter(content_type__app_label='messaging')
            of_messaging.filter(codename=codename).update(name=name)


def rename_hasten(apps: Any, schema_editor: Any) -> None:
    # The name of the action *publish* in earlier versions.
    actions = apps.get_model('messaging', 'OperatorAction').objects.using(schema_editor.connection.alias)
    actions.filter(action='hasten').update(action='publish')


class Migration(migrations.Migration):

    dependencies = [
        ('messaging', '0009_effect_attempts'),
    ]

    operations = [
        # The table keeps its name: processes of the older code still run.
        migrations.AlterModelTable(name='queuesighting', table='messaging_queuesighting'),
        migrations.RenameModel('QueueSighting', 'EmptyQueue'),
        migrations.AlterModelOptions(
            name='effect',
            options={'base_manager_name': 'objects', 'ordering': ['-id'], 'permissions': [('settle_effect', NAMES['settle_effect'])]},
        ),
        migrations.AlterModelOptions(
            name='inboxmessage',
            options={'base_manager_name': 'objects', 'ordering': ['-id'], 'permissions': [('replay_message', NAMES['replay_message']), ('discard_message', 'Can discard dead messages')], 'verbose_name': 'inbox message'},
        ),
        migrations.RunPython(rename_permissions, migrations.RunPython.noop),
        migrations.RunPython(rename_hasten, migrations.RunPython.noop),
    ]
