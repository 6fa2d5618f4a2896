"""The table of faults: what was done to runs, how often, and how often something was lost."""

from collections import Counter
from dataclasses import dataclass, field

HEAD = ("fault", "tried", "survived", "lost")


@dataclass
class Table:
    """Counts tries by fault, in the order in which faults came first."""

    tried: Counter[str] = field(default_factory=Counter)
    survived: Counter[str] = field(default_factory=Counter)

    def add(self, fault: str, survived: bool) -> None:
        """One try."""
        self.tried[fault] += 1
        self.survived[fault] += survived

    @property
    def lost(self) -> int:
        """Tries, of any fault, that a run did not survive."""
        return self.tried.total() - self.survived.total()

    def lines(self) -> list[str]:
        """The table as aligned text, with a last row that sums all; empty without a try."""
        if not self.tried:
            return []
        rows = [
            (fault, tried, self.survived[fault], tried - self.survived[fault])
            for fault, tried in self.tried.items()
        ]
        rows.append(("all", self.tried.total(), self.survived.total(), self.lost))
        width = max(len(str(row[0])) for row in rows)
        return [
            f"{name:<{width}}" + "".join(f"  {count:>8}" for count in counts)
            for name, *counts in (HEAD, *rows)
        ]
