"""A queue of rows in which owners take turns.

Rows of one prompt and one adapter are begun together, as they share the reading of the prompt. A group for which there
is no room may be overtaken by smaller ones, but only `PATIENCE` times.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field

from mass.lm.continuous.row import Row

PATIENCE = 8
"""How often a group is overtaken by others of its kind before these wait for it."""


@dataclass(eq=False)
class Group:
    """Rows that are begun together; all have one prompt, one adapter and one owner."""

    rows: list[Row]
    overtaken: int = 0

    @property
    def owner(self) -> tuple[Hashable, bool]:
        """Whose turn it is. An owner's urgent rows are another's than the rest, so as not to wait behind them."""
        return self.rows[0].owner, self.urgent

    @property
    def urgent(self) -> bool:
        """True if reserved rows may be taken."""
        return self.rows[0].urgent


def grouped(rows: Sequence[Row], most: int) -> list[Group]:
    """Divide rows into groups of at most `most` rows."""
    found: OrderedDict[Hashable, list[Row]] = OrderedDict()
    for row in rows:
        found.setdefault((row.prompt, id(row.adapter), row.owner, row.urgent), []).append(row)
    return [Group(same[start : start + most]) for same in found.values() for start in range(0, len(same), most)]


@dataclass
class FairQueue:
    """Groups that wait, by owner; the owner whose turn it is comes first."""

    _owners: OrderedDict[Hashable, deque[Group]] = field(default_factory=OrderedDict[Hashable, deque[Group]])

    def __len__(self) -> int:
        """Return the number of rows."""
        return sum(len(group.rows) for groups in self._owners.values() for group in groups)

    def add(self, group: Group) -> None:
        """Append a group to those of its owner."""
        self._owners.setdefault(group.owner, deque()).append(group)

    def rows(self) -> list[Row]:
        """Return all rows."""
        return [row for groups in self._owners.values() for group in groups for row in group.rows]

    def drop_ended(self) -> None:
        """Remove rows that have ended (cancelled, or failed) while they waited."""
        for owner, groups in list(self._owners.items()):
            for group in groups:
                group.rows = [row for row in group.rows if not row.ended]
            self._keep(owner, deque(group for group in groups if group.rows))

    def take(self, fits: Callable[[Group], bool]) -> list[Row]:
        """Remove and return the rows of the groups that fit, one group of each owner in turn."""
        taken: list[Row] = []
        blocked: set[bool] = set()
        """The kinds (urgent or not) of which a group is not overtaken any more."""
        tried: set[Hashable] = set()
        while owner := next((owner for owner in self._owners if owner not in tried), None):
            group = self._owners[owner][0]
            kinds = {True, False} if True in blocked else blocked
            if group.urgent not in kinds and fits(group):
                taken += group.rows
                self._owners[owner].popleft()
                self._owners.move_to_end(owner)
                self._keep(owner, self._owners[owner])
                self._count_overtaken(tried, group.urgent)
                continue
            tried.add(owner)
            if group.overtaken >= PATIENCE:
                blocked.add(group.urgent)
        return taken

    def take_alone(self, fits: Callable[[Sequence[Row]], bool]) -> list[Row]:
        """Remove and return rows of the first group, as many as fit and at least one, where nothing else runs."""
        if not self._owners:
            return []
        owner, groups = next(iter(self._owners.items()))
        rows = groups[0].rows
        count = next((n for n in range(len(rows), 1, -1) if fits(rows[:n])), 1)
        groups[0].rows = rows[count:]
        self._owners.move_to_end(owner)
        self._keep(owner, deque(group for group in groups if group.rows))
        return rows[:count]

    def clear(self) -> list[Row]:
        """Remove and return all rows."""
        rows = self.rows()
        self._owners.clear()
        return rows

    def _count_overtaken(self, tried: set[Hashable], urgent: bool) -> None:
        for owner in tried:
            group = self._owners[owner][0]
            group.overtaken += group.urgent or not urgent

    def _keep(self, owner: Hashable, groups: deque[Group]) -> None:
        if groups:
            self._owners[owner] = groups
        else:
            del self._owners[owner]
