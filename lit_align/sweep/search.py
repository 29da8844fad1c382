"""The section ``search`` of a grid file: settings that Optuna chooses, one trial after the other."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lit_align.errors import shown

SEARCH_KEYS = ("metric", "direction", "trials", "space")
STORAGE = "search.db"
"""File in the folder of a sweep with the trials."""
_EXPECTED = "{low: 1.0e-5, high: 1.0e-3, log: true}, {low: 1, high: 8}, or {choices: [dpo, ipo]}"


@dataclass(frozen=True)
class Search:
    """What a search asks for.

    Args:
        metric: of the runs, whose last value is judged; over several seeds its mean.
        direction: ``maximize`` or ``minimize``.
        trials: number of settings that are tried.
        space: key of a run → ``low``, ``high`` and optionally ``log`` and ``step``, or ``choices``.
    """

    metric: str
    direction: str
    trials: int
    space: Mapping[str, Mapping[str, Any]]


def read_search(content: Any) -> Search:
    """Read the section.

    Raises:
        ValueError: a key or a value in it is not what it should be; names the key.
    """
    if not isinstance(content, dict) or set(content) != set(SEARCH_KEYS):
        raise ValueError(f"search is {shown(content)}; expected the keys {', '.join(SEARCH_KEYS)}")
    if content["direction"] not in ("maximize", "minimize"):
        raise ValueError(f"search.direction is {shown(content['direction'])}; expected maximize or minimize")
    if type(content["trials"]) is not int or content["trials"] < 1:
        raise ValueError(f"search.trials is {shown(content['trials'])}; expected a whole number, 1 or more")
    space = content["space"]
    if not isinstance(space, dict) or not space:
        raise ValueError(f"search.space is {shown(space)}; expected keys of a run with {_EXPECTED}")
    for key, part in space.items():
        if not _is_distribution(part):
            raise ValueError(f"search.space.{key} is {shown(part)}; expected {_EXPECTED}")
    return Search(str(content["metric"]), content["direction"], content["trials"], space)


def _is_distribution(part: Any) -> bool:
    if not isinstance(part, dict):
        return False
    if set(part) == {"choices"}:
        return isinstance(part["choices"], list) and len(part["choices"]) > 0
    low: Any = part.get("low")
    high: Any = part.get("high")
    numbers = all(isinstance(end, int | float) and not isinstance(end, bool) for end in (low, high))
    return set(part) <= {"low", "high", "log", "step"} and numbers and bool(low < high)


class Trials:
    """The trials of a search, kept in a file; those of an interrupted search are asked for again.

    Args:
        search: what is searched for.
        folder: of the sweep.
        depends_on: what the results depend on beside; with other values the search begins anew in the same file.

    Raises:
        ModuleNotFoundError: Optuna is not installed; names the extra.
    """

    def __init__(self, search: Search, folder: Path, depends_on: Sequence[Any]) -> None:
        if find_spec("optuna") is None:
            raise ModuleNotFoundError("a search needs optuna: pip install 'lit-align[sweep]'")
        self.search = search
        self._optuna: Any = import_module("optuna")
        self._optuna.logging.set_verbosity(self._optuna.logging.ERROR)
        folder.mkdir(parents=True, exist_ok=True)
        content = json.dumps([search.metric, search.direction, search.space, depends_on], sort_keys=True, default=str)
        name = hashlib.sha256(content.encode()).hexdigest()[:16]
        storage = f"sqlite:///{folder / STORAGE}"
        known = [study.study_name for study in self._optuna.get_all_study_summaries(storage)]
        taken = 0 if name not in known else len(self._optuna.load_study(study_name=name, storage=storage).trials)
        sampler = self._optuna.samplers.TPESampler(seed=taken)  # another one after a restart: draws are not repeated
        self._study = self._optuna.create_study(
            storage=storage, study_name=name, direction=search.direction, sampler=sampler, load_if_exists=True
        )

    @property
    def values(self) -> dict[int, float]:
        """Trial → value of those that have finished, the best first."""
        done = [trial for trial in self._study.trials if trial.state.name == "COMPLETE"]
        return {trial.number: trial.value for trial in sorted(done, key=self._rank)}

    def _rank(self, trial: Any) -> float:
        return float(-trial.value if self.search.direction == "maximize" else trial.value)

    @property
    def all(self) -> dict[int, dict[str, Any]]:
        """Trial → settings, in the order in which they were asked for."""
        space = self.search.space  # whose order names folders
        return {trial.number: {key: trial.params[key] for key in space} for trial in self._study.trials}

    def ask(self, count: int) -> list[int]:
        """Return the trials to run next, those that were interrupted first; none when enough have ended."""
        waiting = [trial.number for trial in self._study.trials if trial.state.name == "RUNNING"][:count]
        new = min(count - len(waiting), self.search.trials - len(self._study.trials))
        space = {key: self._distribution(part) for key, part in self.search.space.items()}
        return [*waiting, *(self._study.ask(space).number for _ in range(new))]

    def _distribution(self, part: Mapping[str, Any]) -> Any:
        kinds = self._optuna.distributions
        if "choices" in part:
            return kinds.CategoricalDistribution(part["choices"])
        whole = all(isinstance(value, int) for value in part.values())
        return (kinds.IntDistribution if whole else kinds.FloatDistribution)(**part)

    def tell(self, number: int, value: float | None) -> None:
        """Note the value of a trial; None if it has failed."""
        state = self._optuna.trial.TrialState.FAIL if value is None else None
        self._study.tell(number, value, state=state)
