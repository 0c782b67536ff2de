"The fast part of `make fuzz`: damaged files end in a result or a sentence."
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import fuzz  # noqa: E402  (what `make fuzz` runs)


@pytest.mark.skipif(sys.platform != "linux", reason="limits of memory and alarms")
def test_damaged_files_end_in_a_result_or_a_sentence(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    found, most = fuzz.run(150, seed=7, chunk=50)
    assert len(found) == 150 and most < 1e9
    faults = fuzz.faults(found)
    assert not faults, "\n".join(f"case {i}: {case}" for i, case in faults.items())
    outcomes = {case[1] for case in found.values()}
    assert {"result", "ValueError"} <= outcomes
