"""The shop's pages, by topic. A view reads the form, calls a service and answers; the rules live elsewhere."""
