"""The byte-level tokenizer of the embedded model as a Hugging Face tokenizer."""

from simpo_jax.tokenizer.byte_vocab import END, SPECIAL_IDS, TEMPLATE
from simpo_jax.tokenizer.huggingface import byte_spellings


def hf_byte_tokenizer():
  """Returns a `PreTrainedTokenizerFast` with the ids and the chat template of `byte_vocab`.

  Like all Hugging Face tokenizers, and unlike ours, it encodes "<|end|>" in a user's text as the
  special token.
  """
  import transformers
  from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

  bos = "<|bos|>"
  bytes_ = Tokenizer(models.BPE(vocab=byte_spellings(), merges=[]))
  bytes_.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
  bytes_.decoder = decoders.ByteLevel()
  names = sorted(SPECIAL_IDS, key=SPECIAL_IDS.__getitem__)  # their ids follow those of the bytes
  bytes_.add_special_tokens([AddedToken(n, special=True, normalized=False) for n in names])
  bytes_.post_processor = processors.TemplateProcessing(
    single=f"{bos} $A", pair=f"{bos} $A $B", special_tokens=[(bos, SPECIAL_IDS[bos])]
  )
  hf = transformers.PreTrainedTokenizerFast(
    tokenizer_object=bytes_, bos_token=bos, eos_token=END, pad_token="<|pad|>"
  )
  hf.chat_template = TEMPLATE
  return hf
