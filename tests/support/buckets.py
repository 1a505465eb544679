"""A bucket on this machine: Google Cloud Storage's emulator, which nothing but tests talk to."""

import contextlib
import socket

import pytest

BUCKET = "gs://bucket"


@contextlib.contextmanager
def gcs_emulator():
  """The running server, with an empty `BUCKET`; the clients of this process are led to it."""
  from gcp_storage_emulator import server as service
  from gcp_storage_emulator.handlers import objects
  from gcp_storage_emulator.server import create_server

  plain, decode, end = objects.download, service._decode_raw_data, b"\n--==0==--"

  def download(request, response, storage, *args, **kwargs):
    """With the header by which TensorStore knows what it has read; the emulator leaves it out."""
    plain(request, response, storage, *args, **kwargs)
    if response.status < 300:
      found = storage.get_file_obj(request.params["bucket_name"], request.params["object_id"])
      response["x-goog-generation"] = found["generation"]

  def decode_whole(data, handler):
    """The emulator takes a content's last \r for a part of the line end that follows it."""
    data = decode(data, handler)
    return data[: -len(end)] + b"\r" + end if data and data.endswith(end) else data

  with contextlib.closing(socket.socket()) as probe:
    probe.bind(("127.0.0.1", 0))
    port = probe.getsockname()[1]
  server = create_server("127.0.0.1", port, in_memory=True, default_bucket="bucket")
  server.start()
  with pytest.MonkeyPatch.context() as patch:
    url = f"http://127.0.0.1:{port}"
    patch.setattr(objects, "download", download)
    patch.setattr(service, "_decode_raw_data", decode_whole)
    # It serves one connection at a time: one that a client keeps open is not waited for.
    patch.setattr(service.RequestHandler, "timeout", 1)
    patch.setenv("STORAGE_EMULATOR_HOST", url)  # gcsfs
    patch.setenv("FSSPEC_GCS_TOKEN", "anon")
    patch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")  # of gRPC, which it does not speak
    patch.setenv("TENSORSTORE_GCS_HTTP_URL", url)
    patch.setenv("GOOGLE_AUTH_TOKEN_FOR_TESTING", "none")  # of TensorStore
    import fsspec
    import fsspec.config

    patch.setitem(fsspec.config.conf, "gcs", {"token": "anon"})
    patch.setattr("simpo_jax.storage.bucket_lock.EVERY", 0.3)
    patch.setattr("simpo_jax.storage.bucket_lock.PATIENCE", 1.0)
    yield server
  fsspec.filesystem("gs").clear_instance_cache()
  server.stop()


@contextlib.contextmanager
def s3_emulator():
  """The same for s3://: an empty "bucket" of moto's server."""
  from moto.server import ThreadedMotoServer

  server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
  server.start()
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv("AWS_ENDPOINT_URL", "http://{}:{}".format(*server.get_host_and_port()))
    patch.setenv("AWS_ACCESS_KEY_ID", "none")
    patch.setenv("AWS_SECRET_ACCESS_KEY", "none")
    patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    patch.setattr("simpo_jax.storage.bucket_lock.EVERY", 0.3)
    patch.setattr("simpo_jax.storage.bucket_lock.PATIENCE", 1.0)
    filesystem("s3://").mkdir("bucket")
    yield server
  filesystem("s3://").clear_instance_cache()
  server.stop()


def filesystem(path):
  """fsspec's, of a path in a bucket."""
  import fsspec

  return fsspec.filesystem(str(path).partition("://")[0], use_listings_cache=False)


def objects(folder):
  """Names below a folder, relative to it."""
  base = str(folder).partition("://")[2].rstrip("/") + "/"
  return sorted(n.removeprefix(base) for n in filesystem(folder).find(base))


def download(folder, target):
  """All objects below a folder, as local files."""
  for name in objects(folder):
    path = target / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content(f"{folder}/{name}"))
  return target


def content(path):
  """Of an object."""
  return filesystem(path).cat_file(str(path))


def put(path, data):
  """Writes an object."""
  filesystem(path).pipe_file(str(path), data)
