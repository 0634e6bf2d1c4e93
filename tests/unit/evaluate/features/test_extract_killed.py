"""An extraction that is killed leaves whole parts; the next one computes the others, and the features are the same."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pipeline.base.store import open_store
from pipeline.evaluate.features import extract, load_features
from pipeline.evaluate.features import storage as parts
from tests.support.datasets import make_dataset
from tests.support.stored_models import put_network, tiny

_CHILD = """
import signal, sys
from pipeline.base.store import open_store
from pipeline.evaluate.features import extract, load_features, storage
from tests.support.stored_models import put_network, tiny

storage.PART_SAMPLES = 64
store, real, stored = open_store(sys.argv[1]), extract._put, []

def put(*given):
    real(*given)
    stored.append(given)
    if len(stored) == 2:
        print("two parts", flush=True)
        signal.pause()

extract._put = put
load_features(store, put_network(store, tiny()), "d")
"""


def test_a_killed_extraction_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "PART_SAMPLES", 64)
    store, calm = open_store(str(tmp_path / "killed")), open_store(str(tmp_path / "calm"))
    for workspace in (store, calm):
        make_dataset(workspace, "d", num_samples=300, size=8, max_samples=70)
    with subprocess.Popen([sys.executable, "-c", _CHILD, store.uri], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "two parts\n"
        child.kill()
    assert [info.key[-13:-8] for info in store.list("features/")] == ["00000", "00001"]
    computed: list[int] = []
    real = extract._put
    monkeypatch.setattr(extract, "_put", lambda *given: (computed.append(given[4].number), real(*given)))
    found = load_features(store, put_network(store, tiny()), "d")
    assert computed == [2, 3, 4]
    expected = load_features(calm, put_network(calm, tiny()), "d")
    assert found.keys == expected.keys
    np.testing.assert_allclose(found.features, expected.features, rtol=1e-5, atol=1e-5)  # threads may differ
