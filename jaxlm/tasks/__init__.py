"""The registry: every synthetic task by its name, each with defaults for all fields. A new task adds one line here."""

from jaxlm.errors import ConfigError
from jaxlm.tasks.base import Sample as Sample
from jaxlm.tasks.base import Task
from jaxlm.tasks.base import accuracy as accuracy
from jaxlm.tasks.base import final as final
from jaxlm.tasks.base import scaled as scaled
from jaxlm.tasks.formal import Dyck as Dyck
from jaxlm.tasks.formal import FlipFlop as FlipFlop
from jaxlm.tasks.formal import StarFree as StarFree
from jaxlm.tasks.groups import WordProblem as WordProblem
from jaxlm.tasks.in_context import InContextLanguages as InContextLanguages
from jaxlm.tasks.passkey import Passkey as Passkey
from jaxlm.tasks.recall import MQAR as MQAR
from jaxlm.tasks.recall import AssociativeRecall as AssociativeRecall
from jaxlm.tasks.recall import Induction as Induction
from jaxlm.tasks.recall import SelectiveCopying as SelectiveCopying
from jaxlm.tasks.regular import CycleNavigation as CycleNavigation
from jaxlm.tasks.regular import EvenPairs as EvenPairs
from jaxlm.tasks.regular import ModularArithmetic as ModularArithmetic
from jaxlm.tasks.regular import Parity as Parity
from jaxlm.tasks.regular import Sum as Sum

# What was imported above is what is registered: the names of this file are the only list.
TASKS: dict[str, type[Task]] = {
    name: cls
    for name, cls in list(vars().items())
    if isinstance(cls, type) and issubclass(cls, Task) and cls is not Task
}

__all__ = ["TASKS", "Sample", "Task", "accuracy", "final", "make", "scaled", *TASKS]  # pyright: ignore[reportUnsupportedDunderAll]


def make(name: str) -> Task:
    """A registered task, its fields at their defaults."""
    if name not in TASKS:
        raise ConfigError(f"task = {name!r}: unknown; expected one of {', '.join(TASKS)}")
    return TASKS[name]()
