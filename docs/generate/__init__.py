"""What the site says of the code, read off the code itself: config keys, help texts, errors, experiments.

A page holds a line `<!-- made: NAME ARGUMENTS -->`, and this package says what stands there. mkdocs needs it at build
(`hook`), and the tests of the pages, which need no mkdocs.
"""

import re
from collections.abc import Callable, Mapping

from docs.generate import commands, config_keys, errors, experiments

MARKER = re.compile(r"^<!-- made: (\w+)(?: ([\w.]+))? -->$", re.MULTILINE)
PARTS: Mapping[str, Callable[[str], str]] = {
    "config": config_keys.section,
    "commands": commands.group,
    "scripts": commands.scripts,
    "errors": errors.classes,
    "refused": errors.refused,
    "system": errors.of_the_system,
    "experiments": experiments.table,
}


def fill(markdown: str) -> str:
    """A page with what its markers stand for.

    Raises:
      KeyError: a marker names nothing that there is.
    """
    return MARKER.sub(lambda marker: PARTS[marker[1]](marker[2] or ""), markdown)
