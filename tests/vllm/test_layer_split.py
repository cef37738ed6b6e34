"""The planner's rule for pipeline stages is that of the installed vLLM."""

from __future__ import annotations

import pytest
from vllm.distributed.utils import get_pp_indices

from hpcq.core.layer_split import stage_layers


@pytest.mark.parametrize("stages", range(1, 9))
def test_layers_are_split_over_stages_as_vllm_does(stages: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """For any number of layers of real models, each stage has the planned number of layers."""
    monkeypatch.delenv("VLLM_PP_LAYER_PARTITION", raising=False)
    for layers in range(stages, 130):
        bounds = [get_pp_indices(layers, rank, stages) for rank in range(stages)]
        assert [end - start for start, end in bounds] == stage_layers(layers, stages)
