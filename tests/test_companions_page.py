"""The table of docs/companions.md is made of the rows that the tests check: `make companions-page`."""

from __future__ import annotations

from companion_table import PAGE, written


def test_the_table_is_that_of_the_tests() -> None:
    assert PAGE.read_text() == written(PAGE.read_text())
