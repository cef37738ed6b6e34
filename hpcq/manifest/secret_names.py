"""What speaks of a secret and is refused where it would be kept: names of variables, and shell text that sets one.

Knows names alone; a value is never looked at and never told again.
"""

from __future__ import annotations

import re

from hpcq.manifest.field_types import refusal

_SPEAKING = re.compile(
    r"(?:^|_)TOKEN(?![A-Z])|SECRET|PASSWORD|PASSWD|PASSPHRASE|(?:^|_)(?:API|ACCESS|PRIVATE)_?KEY|CREDENTIAL",
    re.IGNORECASE,
)
_PLACE = re.compile(r"_(?:PATH|FILE|DIR|HOME)$", re.IGNORECASE)
_VALUE_GIVEN = re.compile(r"""(?<![\w$])([A-Za-z_]\w*)=["']?[^\s"'$`;&|)]""")
"""A name whose value stands there itself: not `NAME=$OTHER`, `NAME=$(cat FILE)` or `NAME=`."""


def no_secret(name: str) -> str:
    """Refuse the name of a secret: HF_TOKEN and OPENAI_API_KEY, not MONKEY, TOKENIZERS_PARALLELISM or HF_TOKEN_PATH."""
    if _SPEAKING.search(name) and not _PLACE.search(name):
        raise refusal(
            f"'{name}' speaks of a secret, which would be kept in locks and in scripts of jobs. Export it in the shell "
            "that submits: Slurm carries it to the jobs; or let setup source a file that you alone can read."
        )
    return name


def no_secret_within(text: str) -> str:
    """Refuse shell lines, and options, that give a secret its value."""
    for name in _VALUE_GIVEN.findall(text):
        no_secret(name)
    return text
