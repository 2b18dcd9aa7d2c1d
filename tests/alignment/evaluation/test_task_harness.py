"""lm-eval is an extra: without it one line says how to get it."""

import sys

import pytest

from alignment.errors import InputError
from alignment.metrics.lm_eval import run_tasks


def test_without_lm_eval_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(InputError) as raised:
        run_tasks(None, None, ["arc_easy"], include_path=None, limit=None, batch_size=1)
    assert "lm-eval is not installed" in str(raised.value)
    assert "pip install 'rlhf-flows[lm-eval]'" in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1
