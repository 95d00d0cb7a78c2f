"""Inputs for tests and reports of operators whose own modules would become too long with them."""
