"""Addresses of the messaging app."""

from django.urls import URLPattern

urlpatterns: list[URLPattern] = []
