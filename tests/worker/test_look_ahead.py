"""That one item is made ahead, and never more."""

import threading
from collections.abc import Callable, Iterator

import pytest

from worker.training.look_ahead import one_ahead


class Counted:
    """The numbers from 0 to 4, or to one that cannot be made; tells how many were begun."""

    def __init__(self, damaged: int = 5) -> None:
        self.begun = 0
        self.makers: set[int] = set()
        self._damaged = damaged

    def __iter__(self) -> Iterator[int]:
        for number in range(5):
            self.begun += 1
            self.makers.add(threading.get_ident())
            if number == self._damaged:
                raise ValueError(f"number {number} is damaged")
            yield number


@pytest.fixture(autouse=True)
def no_thread_stays() -> Iterator[None]:
    before = threading.active_count()
    yield
    assert threading.active_count() <= before


def test_all_items_come_in_their_order() -> None:
    assert list(one_ahead(iter(Counted()))) == [0, 1, 2, 3, 4]
    assert list(one_ahead(iter([]))) == []


def test_the_next_item_and_no_other_is_made_while_one_is_used(
    wait_until: Callable[..., None],
) -> None:
    items = Counted()
    ahead = one_ahead(iter(items))
    for number in range(4):
        assert next(ahead) == number
        wait_until(lambda made=number + 2: items.begun >= made, "the next item to be made")
        assert items.begun == number + 2
    assert items.makers.isdisjoint({threading.get_ident()})
    ahead.close()


def test_a_fault_is_raised_in_its_place() -> None:
    ahead = one_ahead(iter(Counted(damaged=2)))
    assert [next(ahead), next(ahead)] == [0, 1]
    with pytest.raises(ValueError, match="number 2 is damaged"):
        next(ahead)


def test_a_closed_iterator_makes_no_more() -> None:
    items = Counted()
    ahead = one_ahead(iter(items))
    next(ahead)
    ahead.close()
    assert items.begun <= 2
