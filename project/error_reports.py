"""What Django's page about an error says of the settings: it hides PASSWORD and the like, but not what URLs hold."""

from __future__ import annotations

from typing import Any

from django.views.debug import SafeExceptionReporterFilter

from messaging.masking import masked_text


class MaskingFilter(SafeExceptionReporterFilter):
    """Django's own, and passwords in any text."""

    def cleanse_setting(self, key: str | int, value: Any) -> Any:
        """Return the value as it may be shown."""
        cleansed = super().cleanse_setting(key, value)
        return masked_text(cleansed) if isinstance(cleansed, str) else cleansed
