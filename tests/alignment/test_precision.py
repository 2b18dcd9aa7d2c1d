"""The number format follows the machine: never bfloat16 on a processor that emulates it."""

from pathlib import Path

import pytest

from alignment import precision
from alignment.precision import natural_precision
from alignment.recipe.load import load_recipe
from alignment.recipe.resolved import resolve_model

CPU = "cpu"


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("flags\t\t: fpu sse4_2 avx2 avx512f avx512_bf16 amx_tile", "bfloat16"),
        ("flags\t\t: fpu sse4_2 avx2 avx512f avx512_vnni", "float32"),
        ("Features\t: fp asimd bf16 i8mm", "bfloat16"),
        ("Features\t: fp asimd", "float32"),
        ("", "float32"),
    ],
)
def test_flags(flags: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "cpuinfo"
    file.write_text(f"processor\t: 0\nmodel name\t: bf16 inside\n{flags}\n")
    monkeypatch.setattr(precision, "CPUINFO", file)
    monkeypatch.setattr(precision.platform, "system", lambda: "Linux")
    precision._processor_flags.cache_clear()
    try:
        assert natural_precision(CPU) == expected
    finally:
        precision._processor_flags.cache_clear()


def test_this_processor_is_told_rightly() -> None:
    import torch

    natively = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    if precision.platform.machine() in ("x86_64", "AMD64"):
        assert (natural_precision(CPU) == "bfloat16") == natively


def test_auto_is_resolved_and_a_given_dtype_kept(make_recipe: object, tmp_path: Path) -> None:
    path = make_recipe(tmp_path, changes={"model.dtype": "auto"})  # type: ignore[operator]
    assert resolve_model((recipe := load_recipe(path)).model, recipe.resources, path).dtype in ("bfloat16", "float32")
    path = make_recipe(tmp_path, changes={"model.dtype": "bfloat16"})  # type: ignore[operator]
    assert resolve_model((recipe := load_recipe(path)).model, recipe.resources, path).dtype == "bfloat16"
