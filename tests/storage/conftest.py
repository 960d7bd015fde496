"""Buckets on servers that the tests start."""

import itertools

import pytest

from deeplab_jax.storage import BucketPath, client
from tests.support import buckets

_numbers = itertools.count()


def _server(scheme):
    missing = buckets.missing_packages(scheme)
    if missing:
        pytest.skip(f"needs pip install 'deeplab_jax[storage-test]': {', '.join(missing)} not installed")
    with buckets.serve(scheme) as variables:
        yield variables


@pytest.fixture(scope="session")
def gs_server():
    yield from _server("gs")


@pytest.fixture(scope="session")
def s3_server():
    yield from _server("s3")


@pytest.fixture(params=["gs", "s3"])
def scheme(request):
    return request.param


@pytest.fixture
def server(scheme, request, monkeypatch):
    """The variables of a server, which the libraries see during the test."""
    variables = request.getfixturevalue(f"{scheme}_server")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    client._bucket.cache_clear()
    yield variables
    client._bucket.cache_clear()


@pytest.fixture
def bucket(scheme, server):
    """A new bucket."""
    name = f"bucket-{next(_numbers)}"
    buckets.create_bucket(scheme, name, server)
    return BucketPath(f"{scheme}://{name}")
