"""Remote storage: every path that a command takes may be a URL that fsspec opens (s3://, gs://, hdfs://, memory://).

Inputs are downloaded into a cache (`fetch`). Outputs are written to a local folder, which `local` derives from the URL,
and uploaded from there in the background (`writing`). Shards are read where they are, at their offsets.
"""

from evle.storage.door import fetch, is_training_state, mirror_of, open_mirror, session, writing
from evle.storage.urls import is_url, join, local, shown, url_of, with_urls

__all__ = [
    "fetch",
    "is_training_state",
    "is_url",
    "join",
    "local",
    "mirror_of",
    "open_mirror",
    "session",
    "shown",
    "url_of",
    "with_urls",
    "writing",
]
