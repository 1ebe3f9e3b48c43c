"""Work on many items: in order, as one by one, and with the error of the item that failed."""

from __future__ import annotations

import pytest

from planner.published.forked import FEW, each


@pytest.mark.parametrize("count", [0, 3, FEW, 3 * FEW])
def test_results_come_in_the_order_of_their_items(count):
    """A function that does not pickle, on items that do not either."""
    items = [lambda k=k: k for k in range(count)]

    assert list(each(lambda item: item() ** 2, items)) == [k**2 for k in range(count)]


@pytest.mark.parametrize("count", [3, 3 * FEW])
def test_an_items_error_is_raised(count):
    with pytest.raises(ZeroDivisionError):
        list(each(lambda k: 1 / k, list(range(count))[::-1]))
