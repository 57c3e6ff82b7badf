"""Batches that are made while the one before them is used."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")


def one_ahead(items: Iterator[Item]) -> Iterator[Item]:
    """Yield ``items``, the next of which a thread is always at work on.

    No more than that one is ever ahead. What making an item raises is raised in its place. The
    thread ends with the last item, with an exception, or, once its item is made, when the iterator
    is closed.
    """
    end = object()
    with ThreadPoolExecutor(1, thread_name_prefix="look-ahead") as thread:
        following = thread.submit(next, items, end)
        while (item := following.result()) is not end:
            following = thread.submit(next, items, end)
            yield item  # type: ignore[misc]
