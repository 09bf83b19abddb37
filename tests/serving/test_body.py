"""The JSON object of a body."""

from __future__ import annotations

import pytest

from mass.serving import body


class Counted(str):
    """A key that counts how often it is compared."""

    compared = 0

    def __eq__(self, other: object) -> bool:
        Counted.compared += 1
        return str.__eq__(self, other)

    __hash__ = str.__hash__


def test_a_key_that_stands_twice_is_found_in_one_pass() -> None:
    pairs = [(Counted(f"k{i}"), 0) for i in range(1000)]
    with pytest.raises(ValueError, match="'k999' stands twice"):
        body._once_each([*pairs, (Counted("k999"), 0)])
    assert Counted.compared < 10_000
