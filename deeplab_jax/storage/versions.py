"""Conditional writes: an object is only replaced if it still has the version that was read.

fsspec has no interface for them, so these functions use the requests of the two file systems. S3 compares entity tags
(`If-Match`, `If-None-Match`), Google Cloud Storage generations (`ifGenerationMatch`).
"""

import json
from typing import Any, NamedTuple

_GS_BOUNDARY = "deeplab-jax-object"


class Conflict(Exception):
    """The object has another version."""


class Version(NamedTuple):
    """An object as it was read.

    Attributes:
      content: its content.
      version: what `write` compares.
      age: seconds since it was written, both by the clock of the server.
    """

    content: bytes
    version: str
    age: float


def read(fs: Any, key: str) -> Version:
    """Reads an object, `bucket/key`.

    Raises:
      FileNotFoundError: there is none.
    """
    bucket, _, name = key.partition("/")
    if _is_s3(fs):
        reply = fs.call_s3("get_object", Bucket=bucket, Key=name)
        content = _read_body(fs, reply["Body"])
        headers = reply["ResponseMetadata"]["HTTPHeaders"]
        return Version(content, reply["ETag"], _age(headers))
    headers, content = fs.call("GET", "b/{}/o/{}", bucket, name, alt="media")
    headers = {header.lower(): value for header, value in headers.items()}
    return Version(content, headers["x-goog-generation"], _age(headers))


def write(fs: Any, key: str, content: bytes, version: str | None) -> str:
    """Writes an object, `bucket/key`, if it has this version; None for no object. Returns the new version.

    Raises:
      Conflict: it has another version.
    """
    bucket, _, name = key.partition("/")
    if _is_s3(fs):
        condition = {"IfNoneMatch": "*"} if version is None else {"IfMatch": version}
        try:
            return fs.call_s3("put_object", Bucket=bucket, Key=name, Body=content, **condition)["ETag"]
        except OSError as error:
            response = getattr(error.__cause__, "response", {})
            # 409: another conditional write of the object is in progress. 404: the object to replace is gone.
            if response.get("Error", {}).get("Code") in (
                "PreconditionFailed",
                "ConditionalRequestConflict",
                "NoSuchKey",
            ):
                raise Conflict from None
            raise
    parts = (
        ("application/json; charset=UTF-8", json.dumps({"name": name}).encode()),
        ("application/octet-stream", content),
    )
    body = b"".join(
        f"--{_GS_BOUNDARY}\r\nContent-Type: {kind}\r\n\r\n".encode() + part + b"\r\n" for kind, part in parts
    )
    try:
        reply = fs.call(
            "POST",
            f"{fs._location}/upload/storage/v1/b/{bucket}/o",
            uploadType="multipart",
            ifGenerationMatch=version or "0",
            headers={"Content-Type": f'multipart/related; boundary="{_GS_BOUNDARY}"'},
            data=body + f"--{_GS_BOUNDARY}--".encode(),
            json_out=True,
        )
    except FileExistsError:  # gcsfs translates 412 Precondition Failed
        raise Conflict from None
    return reply["generation"]


def list_one(fs: Any, bucket: str) -> None:
    """Asks for one name in a bucket.

    Raises:
      FileNotFoundError: the bucket does not exist.
    """
    if _is_s3(fs):
        fs.call_s3("list_objects_v2", Bucket=bucket, MaxKeys=1)
    else:
        fs.call("GET", "b/{}/o", bucket, maxResults=1, json_out=True)


def _is_s3(fs: Any) -> bool:
    return hasattr(fs, "call_s3")


def _read_body(fs: Any, body: Any) -> bytes:
    from fsspec.asyn import sync

    return sync(fs.loop, body.read)


def _age(headers: dict[str, str]) -> float:
    import email.utils  # slow, and `--help` imports this module

    now, then = (email.utils.parsedate_to_datetime(headers[name]) for name in ("date", "last-modified"))
    return (now - then).total_seconds()
