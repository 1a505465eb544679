"""A hook of mkdocs: links that lead out of docs/, to sources, are plain names on the site.

The pages are read in the repository as well, where those links work.
"""

import re

_OUTSIDE = re.compile(r"\[([^\]\[]+)\]\(\.\./[^)]*\)")


def on_page_markdown(markdown: str, **_) -> str:
  """mkdocs calls this with the text of every page."""
  return _OUTSIDE.sub(r"\1", markdown)
