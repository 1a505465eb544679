"""Hugging Face tokenizers, made here so that every id and merge is known."""

import json

from tokenizers import AddedToken, decoders, models, processors
from tokenizers import Tokenizer as RustTokenizer

from simpo_jax.tokenizer.load import load_tokenizer

CHARS = [chr(i) for i in range(32, 127)] + ["\n"]
SPECIALS = ("<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|endoftext|>")
MERGES = [("a", "b"), (":", " "), ("c", "d"), ("cd", "e")]
BOS, EOS, IM_START, IM_END, ENDOFTEXT = range(1000, 1005)

CHATML = (
  "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
  "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Roles as plain text: nothing special stands at the boundary, and no end token.
PLAIN = (
  "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}A:{% else %}{{ m.content }}"
  "{% endif %}{% endfor %}"
)


def save_tokenizer(
  folder, template: str | None = CHATML, bos="<s>", adds_bos=True, eos="</s>", generation=None
):
  """A tokenizer's folder, and what `load_tokenizer` makes of it."""
  import transformers

  vocab = {t: i for i, t in enumerate(CHARS + [a + b for a, b in MERGES])}
  vocab |= {f"unused{i}": i for i in range(len(vocab), 1000)}
  rust = RustTokenizer(models.BPE(vocab=vocab, merges=MERGES))
  rust.decoder = decoders.Fuse()
  rust.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIALS])
  if adds_bos:
    rust.post_processor = processors.TemplateProcessing(
      single=f"{bos} $A", special_tokens=[(bos, rust.token_to_id(bos))]
    )
  hf = transformers.PreTrainedTokenizerFast(tokenizer_object=rust, bos_token=bos, eos_token=eos)
  hf.chat_template = template
  hf.save_pretrained(folder)
  if generation is not None:
    (folder / "generation_config.json").write_text(json.dumps(generation))
  return load_tokenizer(str(folder))
