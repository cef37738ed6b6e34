"""Errors of transformers (5.17) when it loads a checkpoint's configuration or tokenizer, as one sentence each."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub.errors import StrictDataclassError

from hpcq.core.errors import SetupError, UserInputError
from hpcq.core.sentences import first_line

_INVALID = (AssertionError, AttributeError, KeyError, RuntimeError, StrictDataclassError, TypeError, ValueError)
"""What the classes of models and configurations raise for values that they do not expect."""
_INVALID_TOKENIZER = (AttributeError, IndexError, KeyError, TypeError, ValueError)
_MAX_CHARACTERS = 300


@contextmanager
def config_errors(path: str | Path) -> Iterator[None]:
    """Translate errors while a configuration is read, and a model without weights is made of it.

    Args:
        path: Folder of the checkpoint.

    Raises:
        SetupError: A file, or a package that the checkpoint's code imports, is missing.
        UserInputError: transformers does not support the model, or the configuration is invalid.
    """
    try:
        yield
    except ImportError as error:
        raise SetupError(missing_package(path, error)) from error
    except OSError as error:
        raise SetupError(f"{path}: transformers cannot load it ({first_line(error)}).") from error
    except _INVALID as error:
        reason = " ".join(str(error).split())[:_MAX_CHARACTERS].rstrip(".") or type(error).__name__
        raise UserInputError(
            f"{path}: transformers cannot make a model of its config.json: {reason}: correct it, or copy or download it"
            " again."
        ) from error


@contextmanager
def tokenizer_errors(path: str | Path) -> Iterator[None]:
    """Translate errors while a tokenizer is loaded.

    Args:
        path: Folder of the checkpoint.

    Raises:
        SetupError: The checkpoint has no tokenizer, or a package that it needs is missing.
        UserInputError: transformers cannot load it.
    """
    try:
        yield
    except ImportError as error:
        raise SetupError(missing_package(path, error)) from error
    except OSError as error:
        raise SetupError(f"{path}: it has no tokenizer ({first_line(error)}).") from error
    except Exception as error:
        # The tokenizers library (0.23) has no classes for its errors: it raises Exception itself.
        if not isinstance(error, _INVALID_TOKENIZER) and type(error) is not Exception:
            raise
        reason = first_line(error).rstrip(":")
        raise UserInputError(
            f"{path}: transformers cannot load its tokenizer: {reason}: copy the model's tokenizer files, such as"
            " tokenizer.json and tokenizer_config.json."
        ) from error


def missing_package(path: str | Path, error: ImportError) -> str:
    """Return the message for a package that is not installed, which the checkpoint's code or its tokenizer imports."""
    return (
        f"{path}: a package that this model needs is missing ({first_line(error)}): use an environment of your own that"
        " has it (evaluate.environment, quantize.environment)."
    )
