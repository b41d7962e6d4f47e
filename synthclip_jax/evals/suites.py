"""The suites of evaluation by name; see `synthclip_jax.evals.suite` and `synthclip_jax.config.registry`."""

import difflib
import pkgutil
from collections.abc import Iterable, Mapping

from synthclip_jax.config import registry
from synthclip_jax.errors import EvaluationError
from synthclip_jax.evals.suite import Suite

SUITES: Mapping[str, type[Suite]] = {name: pkgutil.resolve_name(place) for name, place in registry.SUITES.items()}


def choose(names: Iterable[str]) -> list[type[Suite]]:
    """The suites of these names, in their order.

    Raises:
      EvaluationError: there is no such suite; the text names those that there are.
    """
    chosen = []
    for name in names:
        if name not in SUITES:
            near = difflib.get_close_matches(name, SUITES, n=1)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise EvaluationError(f"no suite {name!r}.{hint} Suites: {', '.join(SUITES)}")
        chosen.append(SUITES[name])
    return chosen
