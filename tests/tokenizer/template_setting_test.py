"""data.chat_template: a file of any name or Jinja text; never a name taken for a text."""

import pytest

from simpo_jax.config import replace_fields
from simpo_jax.errors import UserError
from simpo_jax.settings import Settings
from simpo_jax.tokenizer.load import run_tokenizer
from support.hf_tokenizers import CHATML, save_tokenizer

OTHER = "{% for m in messages %}[{{ m.content }}]{% endfor %}"
MESSAGES = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
  folder = tmp_path_factory.mktemp("model")
  (folder / "config.json").write_text("{}")
  save_tokenizer(folder, CHATML)
  return str(folder)


def rendered(model, template):
  config = replace_fields(Settings(), {"model.source": model, "data.chat_template": template})
  return run_tokenizer(config).render(MESSAGES, False)


@pytest.mark.parametrize("name", ["t.jinja", "t.txt", "template", "sub/chat template.j2"])
def test_any_file_is_read(model, tmp_path, monkeypatch, name):
  monkeypatch.chdir(tmp_path)
  (tmp_path / name).parent.mkdir(exist_ok=True)
  (tmp_path / name).write_text(OTHER)
  assert rendered(model, name) == rendered(model, str(tmp_path / name)) == "[hi]"
  assert rendered(model, OTHER) == "[hi]"
  assert rendered(model, "") == "<|im_start|>user\nhi<|im_end|>\n"


def test_a_text_on_one_long_line_is_a_text(model):
  assert rendered(model, OTHER + "x" * 5000) == "[hi]" + "x" * 5000


@pytest.mark.parametrize(
  "template, says",
  [
    ("chatml", "chat_template=chatml is neither a file nor Jinja text"),
    ("missing.jinja", "missing.jinja is neither a file nor Jinja text"),
    ("{% for m in messages %}", "is not valid Jinja .line 1: "),
    ("{{ 'Hello' }}", "does not show the content of messages"),
    ("{{ raise_exception('no') }}", "refuses a conversation of one user's message: no"),
    ("words.txt", "words.txt is not a chat template"),
    ("bytes.jinja", "bytes.jinja is not a readable text file"),
    (".", "chat_template=. is not a readable text file"),
  ],
)
def test_what_is_no_template_is_refused(model, tmp_path, monkeypatch, template, says):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "words.txt").write_text("chatml")
  (tmp_path / "bytes.jinja").write_bytes(b"{{ \xff }}")
  with pytest.raises(UserError, match=says) as error:
    rendered(model, template)
  assert "\n" not in str(error.value)
