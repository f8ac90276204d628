"""IngestResult: what came of taking a task into memory comes back as it was."""

import math

import pytest
import torch
from conftest import equal_states

from hf_wakesleep import RawCodec, SemiParametricMemory
from hf_wakesleep.model.head_wakesleep import LinearDiscriminant
from hf_wakesleep.stages.ingest import IngestResult
from hf_wakesleep.stages.stopwatch import Stopwatch


@pytest.mark.parametrize("score", [0.75, math.nan])
@pytest.mark.parametrize("keeps_memory", [True, False])
def test_an_ingested_task_comes_back_as_it_was(tmp_path, score, keeps_memory):
    memory = SemiParametricMemory(RawCodec(), None, ["a", "b"]) if keeps_memory else None
    if memory is not None:
        memory.write(memory.codec.encode(torch.randint(0, 256, (5, 3, 8, 8), dtype=torch.uint8)), [0, 1, 0, 1, 1], 3)
    lda, features = LinearDiscriminant(4, 2, 0.1), torch.randn(5, 4) if keeps_memory else None
    lda.update(torch.randn(5, 4), torch.tensor([0, 1, 0, 1, 1]))
    assert IngestResult.load(tmp_path, Stopwatch()) is None
    IngestResult(memory, lda.state_dict(), features, {"before": score}).save(tmp_path, Stopwatch())
    loaded, fresh = IngestResult.load(tmp_path, Stopwatch()), LinearDiscriminant(4, 2, 0.1)
    fresh.load_state_dict(loaded.statistics)
    assert equal_states(lda, fresh)
    assert loaded.scores == pytest.approx({"before": score}, nan_ok=True)
    assert (loaded.memory is None) == (loaded.features is None) == (memory is None)
    if memory is not None:
        assert loaded.memory.checksum() == memory.checksum()
        assert torch.equal(loaded.features, features)
