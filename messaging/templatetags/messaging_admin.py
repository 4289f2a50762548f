"""Words of the message pages, as template filters."""

from django import template

from messaging.admin import words
from messaging.masking import masked_text

register = template.Library()
register.filter("pill", words.pill)
register.filter("moment", words.moment)
register.filter("span", words.span)
register.filter("masked_text", masked_text)
