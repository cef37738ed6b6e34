"""What every quantizer does first: seeds, device, and the token sequences of the calibration set."""

from __future__ import annotations

import random

from hpcq.core.errors import SetupError
from hpcq.core.work_records import Calibration
from hpcq.quantize.calibration import CalibrationSet, calibration_set
from hpcq.quantize.chat_template import chat_renderer
from hpcq.quantize.interface import QuantizeJob
from hpcq.quantize.model_loading import LoadedModel, plain_tokens, separator_token


def seed_and_select_device(job: QuantizeJob) -> str:
    """Seed all random number generators, and return "cuda" or "cpu".

    Raises:
        SetupError: A GPU is requested, and torch detects none.
    """
    import numpy as np
    import torch

    random.seed(job.seed)
    np.random.seed(job.seed)  # noqa: NPY002  the tools and transformers use the global generator
    torch.manual_seed(job.seed)
    has_cuda = torch.cuda.is_available()
    if job.device == "cuda" and not has_cuda:
        raise SetupError("quantize.device is 'cuda', but torch detects no GPU: choose another GPU class or 'cpu'.")
    return "cuda" if has_cuda else "cpu"


def calibration_sequences(calibration: Calibration, base: LoadedModel) -> CalibrationSet:
    """Return the token sequences of the calibration set: the same for every tool, in every environment."""
    return calibration_set(
        calibration,
        lambda text: base.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"],
        separator=separator_token(base),
        render_chat=chat_renderer(base.tokenizer),
        bos=base.tokenizer.bos_token_id,
        vocabulary=plain_tokens(base),
    )
