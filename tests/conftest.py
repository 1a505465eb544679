"""The tests' platform: the CPU, also where there is an accelerator. The long files come first."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

# Minutes each, most of it one compiled program that the file's tests share: side by side with
# the others (pytest -n), a long file that starts last would be waited for.
LONG = (
  "hosts_test",
  "hosts_drill_test",
  "llama3_v5p_test",
  "one_program_test",
  "lora_test",
  "checkpoint_hosts_test",
  "checkpoint_test",
  "checkpoint_faults_test",
  "data_stream_test",
  "smollm2_train_test",
  "smollm2_generate_test",
  "smollm2_test",
  "export_test",
  "generate_test",
  "fsdp_test",
  "plan_test",
)


def pytest_collection_modifyitems(items):
  """Long files first, the others in their order."""
  items.sort(key=lambda i: LONG.index(i.path.stem) if i.path.stem in LONG else len(LONG))
