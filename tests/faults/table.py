"""The table of faults: what was done to runs, how often, how often something was lost, and at which
moments it was done where a test says so."""

from collections import Counter, defaultdict
from dataclasses import dataclass, field

HEAD = ("fault", "tried", "survived", "lost")


@dataclass
class Table:
    """Counts tries by fault, in the order in which faults came first."""

    tried: Counter[str] = field(default_factory=Counter)
    survived: Counter[str] = field(default_factory=Counter)
    moments: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    "By fault: how many tries at each moment that has a name."

    def add(self, fault: str, survived: bool, moment: str = "") -> None:
        """One try."""
        self.tried[fault] += 1
        self.survived[fault] += survived
        if moment:
            self.moments[fault][moment] += 1

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
            f"{name:<{width}}" + "".join(f"  {count:>8}" for count in counts) + self._when(name)
            for name, *counts in (HEAD, *rows)
        ]

    def _when(self, fault: str) -> str:
        counts = self.moments[fault].items() if fault in self.moments else ()
        words = ", ".join(f"{moment} {count}" for moment, count in counts)
        return f"   ({words})" if words else ""
