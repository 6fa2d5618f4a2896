"""What a config shows of itself: addresses without their passwords and signatures.

The config goes into config.yaml, into each checkpoint's manifest and to wandb; people pass those
on. A token belongs into the environment and never into a config (launch/README.md); what stands in
one all the same is replaced here by `***`.
"""

import re
from typing import Any

HIDDEN = "***"
# user:password@ of an address, up to the last @ before the path
_USER = re.compile(r"(?<=://)[^/?#\s]+@")
# the values of a query, which may be a signature: ?X-Amz-Signature=... &sig=...
_QUERY = re.compile(r"(?<=://)(?P<before>[^?\s]*\?)(?P<query>[^#\s]*)")
_VALUE = re.compile(r"=[^&]*")
_SECRET_KEY = re.compile(
    r"(^|_)(token|secret|password|passwd|api_?key|access_?key|credentials?)$", re.IGNORECASE
)


def redact(value: Any) -> Any:
    """The same plain values (of dictionaries, lists and scalars), every address in them without
    its user and the values of its query, and without strings whose key names a secret."""
    if isinstance(value, dict):
        return {
            key: HIDDEN if _is_secret(key, item) else redact(item) for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [redact(item) for item in value]
    if isinstance(value, str) and "://" in value:
        value = _USER.sub(f"{HIDDEN}@", value)
        return _QUERY.sub(lambda m: m["before"] + _VALUE.sub(f"={HIDDEN}", m["query"]), value)
    return value


def _is_secret(key: Any, value: Any) -> bool:
    return isinstance(value, str) and bool(value) and bool(_SECRET_KEY.search(str(key)))
