"""A bucket on this machine, of an emulator of Google Cloud Storage."""

import http
import os

import pytest


@pytest.fixture(scope='module')
def bucket():
  """The address of an empty bucket, which all libraries find emulated."""
  with pytest.MonkeyPatch.context() as patch:
    # Else gcsfs asks by gRPC, which is not emulated, for the kind of a bucket.
    patch.setitem(os.environ, 'GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT', 'false')
    pytest.importorskip('gcsfs')
    server = pytest.importorskip('gcp_storage_emulator.server')
    patch.setattr(server, 'HANDLERS', (*_routes(), *server.HANDLERS))
    with server.create_server('127.0.0.1', 0, in_memory=True,
                              default_bucket='bucket') as running:
      url = f'http://127.0.0.1:{running._api._httpd.server_port}'
      patch.setitem(os.environ, 'STORAGE_EMULATOR_HOST', url)  # gcsfs
      patch.setitem(os.environ, 'TENSORSTORE_GCS_HTTP_URL', url)
      patch.setitem(os.environ, 'GOOGLE_AUTH_TOKEN_FOR_TESTING', 'any')
      yield 'gs://bucket'


def _routes():
  """What the emulator lacks: generations in requests, and moving an object.

  By the generation, TensorStore tells whether an object changed since it was
  read, and overwrites none that did. gcsfs moves objects to rename them.
  """
  from gcp_storage_emulator import settings
  from gcp_storage_emulator.handlers import objects
  of_bucket = r'/b/(?P<bucket_name>[-.\w]+)/o'
  of_object = f'{settings.API_ENDPOINT}{of_bucket}/(?P<object_id>[^/]+)'
  return (
      (of_object, {'GET': _if_generation(objects.get),
                   'DELETE': _if_generation(objects.delete),
                   'PATCH': objects.patch}),
      (f'{of_object}/moveTo/o/(?P<dest_object_id>[^/]+)', {'POST': _move}),
      (settings.UPLOAD_API_ENDPOINT + of_bucket, {
          'POST': _if_generation(objects.insert),
          'PUT': objects.upload_partial}))


def _if_generation(handle):
  """A handler that answers as `handle` where the conditions are met."""
  from gcp_storage_emulator.exceptions import NotFound
  def handler(request, response, storage):
    query = {name: values[0] for name, values in request.query.items()}
    name = request.params.get('object_id', query.get('name'))
    try:
      found = storage.get_file_obj(request.params['bucket_name'], name)
      now = found['generation']
    except NotFound:
      now = '0'
    if query.get('ifGenerationMatch', now) != now:
      response.status = http.HTTPStatus.PRECONDITION_FAILED
    elif now != '0' and query.get('ifGenerationNotMatch') == now:
      response.status = http.HTTPStatus.NOT_MODIFIED
    else:
      if request.method == 'GET':
        response['x-goog-generation'] = now
      handle(request, response, storage)
  return handler


def _move(request, response, storage):
  from gcp_storage_emulator.handlers import objects
  request.params['dest_bucket_name'] = request.params['bucket_name']
  objects.copy(request, response, storage)
  if response.status == http.HTTPStatus.OK:
    objects.delete(request, response, storage)
