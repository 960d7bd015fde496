"""The errors of the storage libraries as one line each."""

import errno
import importlib.util
from typing import NamedTuple

from deeplab_jax.errors import UserError

_CREDENTIALS = {
    "gs": "run `gcloud auth application-default login`, or set GOOGLE_APPLICATION_CREDENTIALS",
    "s3": "run `aws configure`, or set AWS_PROFILE or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
}
_VARIABLES = {"gs": "STORAGE_EMULATOR_HOST", "s3": "AWS_ENDPOINT_URL"}
_SERVICES = {"gs": "Google Cloud Storage", "s3": "S3"}
_LIBRARIES = {"gs": "gcsfs", "s3": "s3fs"}
_EXTRAS = {"gs": "gcs", "s3": "s3"}
_LONGEST = 200  # characters of a server's message

# Exceptions of libraries that may not be installed, by their names.
_UNREACHABLE = {
    "EndpointConnectionError", "ConnectTimeoutError", "ReadTimeoutError", "ConnectionClosedError", "HTTPClientError",
    "ConnectionError", "ConnectionResetError", "ConnectionRefusedError", "ConnectionAbortedError", "BrokenPipeError",
    "ClientConnectorError", "ClientError", "ServerDisconnectedError", "TimeoutError", "FSTimeoutError", "ProxyError",
    "ClientPayloadError", "ResponseParserError", "IncompleteRead", "TransportError",
}  # fmt: skip
_NO_CREDENTIALS = {
    "NoCredentialsError", "PartialCredentialsError", "DefaultCredentialsError", "RefreshError", "ProfileNotFound",
    "TokenRetrievalError", "SSOTokenLoadError", "UnauthorizedSSOTokenError",
}  # fmt: skip
_BUSY = (errno.EBUSY, getattr(errno, "EREMOTEIO", errno.EIO))  # s3fs: the server is overloaded or has failed


class Failure(NamedTuple):
    """A failed request.

    Attributes:
      message: one line with the problem and its fix.
      is_temporary: whether it may work when it is repeated.
    """

    message: str
    is_temporary: bool


def check_installed(address: str) -> None:
    """Checks that the library for a kind of storage is installed, without importing it.

    Raises:
      UserError: it is not. The message names the extra to install.
    """
    scheme = address.partition(":")[0]
    if importlib.util.find_spec(_LIBRARIES[scheme]) is None:
        raise UserError(
            f"{address} needs the package {_LIBRARIES[scheme]}; install the extra: pip install "
            f"'deeplab_jax[{_EXTRAS[scheme]}]'"
        )


def describe(error: Exception, address: str) -> Failure | None:
    """Describes an error of the storage libraries; None if it is something else."""
    scheme = address.partition(":")[0]
    names = {kind.__name__ for kind in type(error).__mro__}
    response = getattr(error, "response", None) or getattr(error.__cause__, "response", None)
    code = str(getattr(error, "code", None) or "")
    number = error.errno if isinstance(error, OSError) else None
    text = " ".join(str(error).split())[:_LONGEST] or type(error).__name__
    if names & _NO_CREDENTIALS:
        return Failure(f"no credentials for {address}; {_CREDENTIALS[scheme]}", False)
    # gcsfs raises an OSError without a number for 403; s3fs a PermissionError.
    if code in ("401", "403") or (number is None and (isinstance(error, PermissionError) or "Forbidden" in text)):
        return Failure(
            f"no permission for {address}: {text}; check the permissions of the bucket and the credentials: "
            f"{_CREDENTIALS[scheme]}",
            False,
        )
    if number in _BUSY or code.startswith("5") or (names & _UNREACHABLE and not response):
        return Failure(
            f"cannot reach {_SERVICES[scheme]} for {address}: {text}; check the network and {_VARIABLES[scheme]}",
            True,
        )
    if response or code:
        return Failure(f"{_SERVICES[scheme]} refuses a request for {address}: {text}", False)
    return None
