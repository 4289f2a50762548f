"""The shop's middleware."""

from django.http import HttpRequest
from django.http.response import HttpResponseBase
from django.middleware.locale import LocaleMiddleware
from django.utils.cache import patch_vary_headers


class LanguageMiddleware(LocaleMiddleware):
    """Activates the visitor's language: that of the cookie, else the best of what the browser accepts."""

    def process_response(self, request: HttpRequest, response: HttpResponseBase) -> HttpResponseBase:
        """Tell caches what the language depends on. Django's own class names the header alone, not the cookie."""
        patch_vary_headers(response, ["Cookie"])
        return super().process_response(request, response)
