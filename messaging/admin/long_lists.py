"""Lists of tables that may have millions of rows: counted up to a bound, and read by an index whatever is filtered."""

from __future__ import annotations

from functools import cached_property
from typing import Any, ClassVar

from django.contrib import admin
from django.contrib.admin.views.main import ALL_VAR, PAGE_VAR, SEARCH_VAR, ChangeList
from django.core.paginator import Paginator
from django.db import connections
from django.db.models import QuerySet
from django.http import HttpRequest

from messaging.admin import searching
from messaging.admin.read_only import ReadOnlyAdmin
from messaging.admin.searching import ANYWHERE, How

#: Rows that are counted at most, and that the pages of a list hold.
COUNTED = 10_000
_HOW = "how_searched"
#: The parameter of an address that leads to rows older than those on the pages before.
_BELOW = "id__lt"


class BoundedPaginator(Paginator):  # type: ignore[type-arg]
    """Pages of the newest COUNTED rows. It never counts a whole table.

    A list reads the ids of a page first, and its rows by them: what it shows besides columns (trouble of a message's
    effects) is then looked up for these rows, and not gathered from a whole table. Where not more than COUNTED rows
    match a filter, all their ids are read: databases guess badly whether a filter and an order are quicker by the
    filter's index or by the order's.
    """

    object_list: QuerySet[Any]

    @cached_property
    def is_complete(self) -> bool:
        """Whether the pages hold all rows that match."""
        return self._found <= COUNTED

    @cached_property
    def count(self) -> int:
        """How many rows the pages hold."""
        return min(self._found, COUNTED)

    @cached_property
    def words(self) -> str:
        """How many rows there are: exactly, about, or more than COUNTED."""
        if self.is_complete:
            return str(self.count)
        estimate = 0 if self._is_filtered else _estimate(self.object_list)
        return f"about {estimate:,}" if estimate > COUNTED else f"more than {COUNTED:,}"

    @property
    def in_pages(self) -> str:
        """How many rows the pages hold at most."""
        return f"{COUNTED:,}"

    def validate_number(self, number: Any) -> int:
        """Return the number of a page that exists: the last one for those beyond, unless all rows are on pages."""
        if not self.is_complete and str(number).isdecimal():
            number = min(int(number), self.num_pages)
        return super().validate_number(number)

    def ids(self, start: int, end: int) -> list[int]:
        """Return the ids of the rows from one place to another."""
        if self._is_filtered and self.is_complete:
            return sorted(self._ids, reverse=True)[start:end]
        return list(self.object_list.values_list("pk", flat=True)[start:end])

    @property
    def _is_filtered(self) -> bool:
        return bool(self.object_list.query.where)

    @cached_property
    def _ids(self) -> list[int]:
        return list(self.object_list.order_by().values_list("pk", flat=True)[: COUNTED + 1])

    @cached_property
    def _found(self) -> int:
        if self._is_filtered:
            return len(self._ids)
        return self.object_list.order_by().values("pk")[: COUNTED + 1].count()


def _estimate(rows: QuerySet[Any]) -> int:
    """Return about how many rows the table has, in two digits; 0 where the database keeps no such figure."""
    connection = connections[rows.db]
    if connection.vendor != "postgresql":
        return 0
    with connection.cursor() as cursor:
        name = connection.ops.quote_name(rows.model._meta.db_table)
        cursor.execute("SELECT reltuples::bigint FROM pg_class WHERE oid = to_regclass(%s)", [name])
        (found,) = cursor.fetchone() or (0,)
    return round(found, 2 - len(str(found)))


class LongList(ChangeList):
    """The list as a page shows it: by id, newest first, whatever the address asks for. That needs no sorting."""

    paginator: BoundedPaginator
    how_searched = How.WHOLE

    def get_queryset(self, request: HttpRequest, exclude_parameters: Any = None) -> QuerySet[Any]:
        found: QuerySet[Any] = super().get_queryset(request, exclude_parameters)
        self.how_searched = getattr(request, _HOW, How.WHOLE)
        return found

    def get_query_string(self, new_params: Any = None, remove: Any = None) -> str:
        """Return an address of this list. Only those of pages stay among the older rows: a filter or a search that is
        asked for there is about all of them."""
        if new_params and not remove and set(new_params) <= {PAGE_VAR, ALL_VAR, _BELOW}:
            return super().get_query_string(new_params)
        others = {name: value for name, value in (new_params or {}).items() if name != _BELOW}
        return super().get_query_string(others, [*(remove or []), _BELOW])

    def get_ordering(self, request: HttpRequest, queryset: QuerySet[Any]) -> list[Any]:
        return ["-pk"]

    def get_results(self, request: HttpRequest) -> None:
        super().get_results(request)
        self.page_num = min(self.page_num, self.paginator.num_pages)
        is_whole = not self.multi_page or (self.show_all and self.can_show_all)
        start = 0 if is_whole else (self.page_num - 1) * self.list_per_page
        end = self.result_count if is_whole else min(start + self.list_per_page, self.result_count)
        # Without the filters, by which SQLite would look for them once more.
        rows = self.root_queryset.filter(pk__in=self.paginator.ids(start, end))
        self.result_list = self.apply_select_related(rows).order_by("-pk")

    @property
    def older(self) -> str:
        """The address that goes on after the last page; empty elsewhere, and where nothing is left."""
        rows = list(self.result_list)
        if self.paginator.is_complete or self.page_num < self.paginator.num_pages or not rows:
            return ""
        return self.get_query_string({_BELOW: rows[-1].pk})

    @property
    def further(self) -> str:
        """The address of a search that looks further; empty where there is none."""
        return self.get_query_string({SEARCH_VAR: ANYWHERE + self.query}) if self.how_searched.can_go_further else ""


def note_how(request: HttpRequest, how: How) -> None:
    """Note how a request's search found its rows, for the page to say."""
    setattr(request, _HOW, how)


class LongListAdmin(ReadOnlyAdmin):
    """Shows rows of which there may be millions: by id, which is by time."""

    paginator = BoundedPaginator
    show_facets = admin.ShowFacets.NEVER
    sortable_by: ClassVar[Any] = ()
    list_per_page = 50

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        return LongList

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Any], search_term: str
    ) -> tuple[QuerySet[Any], bool]:
        """Look for each word anywhere in the columns that are searched, among the newest rows of the table."""
        return self.with_words(request, queryset, search_term, searching.ASKED_FOR)

    def with_words(
        self, request: HttpRequest, rows: QuerySet[Any], words: str, among: int
    ) -> tuple[QuerySet[Any], bool]:
        """Return those of `rows` that have all `words`, and are among so many newest rows of the table; and whether
        some are there twice, as `get_search_results` does."""
        if not words.strip():
            return rows, False
        last = self.model._default_manager.order_by("-pk").values_list("pk", flat=True).first() or 0
        return super().get_search_results(request, rows.filter(pk__gt=last - among), words)
