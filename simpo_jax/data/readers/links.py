"""Fetches files that are named by a link, https://..., into the cache of `download`."""

import email.utils
import http.client
import pathlib
import urllib.error
import urllib.parse
import urllib.request
from typing import BinaryIO

from simpo_jax.data.readers.download import cached, set_mtime
from simpo_jax.errors import UserError, one_line

_TIMEOUT_SECONDS = 60.0  # without any byte
_BLOCK_BYTES = 2**20
_FAILURES = (OSError, http.client.HTTPException, ValueError)  # ValueError: a malformed link
# Not urllib's opener: it would follow a redirect to ftp://.
_OPENER = urllib.request.OpenerDirector()
for _handler in (
  urllib.request.ProxyHandler,
  urllib.request.HTTPHandler,
  urllib.request.HTTPSHandler,
  urllib.request.HTTPDefaultErrorHandler,
  urllib.request.HTTPRedirectHandler,
  urllib.request.HTTPErrorProcessor,
):
  _OPENER.add_handler(_handler())


def file_name(link: str) -> str:
  """Returns the name of the file that a link names: "a b.csv" for https://HOST/a%20b.csv?x=1."""
  return urllib.parse.unquote(urllib.parse.urlsplit(link).path.rpartition("/")[2])


def fetch(link: str) -> pathlib.Path:
  """Returns a local copy of the file at a link; downloads it unless this version is cached.

  Raises:
    UserError: the server does not give the file, or the copy cannot be written.
  """
  name = file_name(link)
  if name in ("", ".", "..") or "/" in name or "\0" in name:
    raise UserError(f"{link} names no file; a link must end in the name of one")
  request = urllib.request.Request(link, headers={"User-Agent": "simpo_jax", "Accept": "*/*"})
  try:
    with _OPENER.open(request, timeout=_TIMEOUT_SECONDS) as response:
      headers = response.headers
      if headers.get_content_type() == "text/html":
        raise UserError(
          f"{link} is a web page, not a file; copy the link of its download button (on the hub and "
          "on GitHub: /resolve/ or /raw/ in place of /blob/)"
        )
      if (encoding := headers.get("Content-Encoding", "identity")) != "identity":
        raise UserError(f"{link} comes encoded as {encoding}; download the file and name it")
      size = headers.get("Content-Length", "")
      version = headers.get("ETag") or headers.get("Last-Modified") or ""

      def get(scratch: pathlib.Path) -> None:
        _save(response, scratch / name, size, headers.get("Last-Modified"))

      return cached((link, size, version) if version else None, name, link, get)
  except urllib.error.HTTPError as error:
    raise UserError(
      f"{link} cannot be fetched (HTTP {error.code} {one_line(error.reason)}); check the link, or "
      "download the file and name it"
    ) from error
  except _FAILURES as error:
    raise UserError(
      f"{link} cannot be fetched ({one_line(getattr(error, 'reason', error))}); check the link, or "
      "download the file and name it"
    ) from error


def _save(response: BinaryIO, copy: pathlib.Path, size: str, changed: str | None) -> None:
  with open(copy, "wb") as file:
    while block := _read(response):
      file.write(block)
  if size and copy.stat().st_size != int(size):
    raise http.client.HTTPException(f"{copy.stat().st_size:,} of {int(size):,} bytes arrived")
  if changed:
    set_mtime(copy, email.utils.parsedate_to_datetime(changed))


def _read(response: BinaryIO) -> bytes:
  try:
    return response.read(_BLOCK_BYTES)
  except OSError as error:  # of the connection, not of the cache
    raise http.client.HTTPException(one_line(error)) from error
