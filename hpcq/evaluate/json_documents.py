"""Documents of a task in JSON lines files, one or several per split.

Not with the JSON loader of datasets: it uses a cache, under a lock, in the home folder that all jobs share, and it
converts strings that look like dates to dates (datasets 5.2).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import datasets

from hpcq.core.errors import UserInputError
from hpcq.core.json_lines import read_json_lines
from hpcq.core.sentences import first_line


def read_json_documents(files: Mapping[str, Sequence[Path]]) -> datasets.DatasetDict:
    """Load the files of every split into memory. Each document gets all columns of its split.

    Raises:
        UserInputError: A line is no JSON object in UTF-8, or a column has values of several types.
    """
    return datasets.DatasetDict({split: _read_split(paths) for split, paths in files.items()})


def _read_split(paths: Sequence[Path]) -> datasets.Dataset:
    lines = read_json_lines(paths)
    columns = dict.fromkeys(name for line in lines for name in line.document)
    try:
        return datasets.Dataset.from_dict({name: [line.document.get(name) for line in lines] for name in columns})
    except (TypeError, ValueError, OverflowError) as error:  # pyarrow's, such as for an integer of more than 64 bits
        raise UserInputError(f"{paths[0]}: its documents do not fit a table ({first_line(error)}).") from error
