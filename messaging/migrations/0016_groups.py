from django.apps import apps
from django.db import migrations


class Migration(migrations.Migration):
    """Changes no table. When it has been applied, `models/groups.py` creates the groups: permissions exist only then."""

    dependencies = [
        ('messaging', '0015_minute_counts'),
        # The groups need its tables.
        *([('auth', '__first__')] if apps.is_installed('django.contrib.auth') else []),
    ]

    operations = []
