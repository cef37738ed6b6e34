"""Check of a tokenizer.json by the library that reads it. Its errors have no class of their own."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from hpcq.catalog.tokenizer_file import TOKENIZER_FILE
from hpcq.core.sentences import first_line


def tokenizer_file_problem(folder: Path) -> str | None:
    """Return why the tokenizer.json in a folder cannot be loaded, and the fix, as a clause; None: it can, or is absent.

    Environments of third-party backends may lack the library; then nothing is checked.
    """
    path = folder / TOKENIZER_FILE
    if not path.is_file() or find_spec("tokenizers") is None:
        return None
    from tokenizers import Tokenizer

    try:
        Tokenizer.from_file(str(path))
    except Exception as error:
        if type(error) is not Exception:  # tokenizers (0.23) raises Exception itself for every error of the file
            raise
        return f"its {TOKENIZER_FILE} is invalid ({first_line(error)}): copy the model's tokenizer files"
    return None
