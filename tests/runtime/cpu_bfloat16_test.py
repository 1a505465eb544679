"""What the banner says of bfloat16 on CPU."""

import pytest

from simpo_jax.runtime import cpu_bfloat16


@pytest.mark.parametrize(
  "text, expected",
  (
    ("flags\t\t: fpu avx512f avx512_bf16 amx_bf16 amx_tile\n", "amx_bf16"),
    ("model name\t: amx_bf16\nflags\t\t: fpu avx2 avx512_bf16\n", "avx512_bf16"),
    ("Features\t: fp asimd bf16 i8mm\n", "bf16"),
    ("flags\t\t: fpu avx2\nbugs\t\t: amx_bf16\n", None),
  ),
)
def test_the_instructions_are_those_that_linux_lists(tmp_path, text, expected):
  (tmp_path / "cpuinfo").write_text(text)
  assert cpu_bfloat16.instructions(tmp_path / "cpuinfo") == expected
  assert cpu_bfloat16.instructions(tmp_path / "none") is None


def test_only_a_run_that_could_gain_is_told(monkeypatch):
  monkeypatch.setattr(cpu_bfloat16, "instructions", lambda: "amx_bf16")
  advice = cpu_bfloat16.advice("cpu", "float32")
  assert advice and "amx_bf16" in advice and "compute_dtype=bfloat16" in advice
  assert cpu_bfloat16.advice("cpu", "bfloat16") is None
  assert cpu_bfloat16.advice("tpu", "float32") is None
  monkeypatch.setattr(cpu_bfloat16, "instructions", lambda: None)
  assert cpu_bfloat16.advice("cpu", "float32") is None
