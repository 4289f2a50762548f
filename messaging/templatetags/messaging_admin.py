"""Words of the message pages, as template filters."""

from django import template
from django.apps import apps

from messaging.masking import masked_text

register = template.Library()
register.filter("masked_text", masked_text)

# Django imports the template tags of every app at each command, also in a project that has no admin.
if apps.is_installed("django.contrib.admin"):
    from messaging.admin import words

    for each in (words.pill, words.icon, words.moment, words.clock, words.span):
        register.filter(each.__name__, each)
