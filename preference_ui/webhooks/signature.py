"""The signature of Standard Webhooks (https://www.standardwebhooks.com), version 1.0, symmetric: HMAC-SHA256 over
"ID.TIMESTAMP.BODY" with a secret that is written as ``whsec_`` and base64."""

import base64
import hashlib
import hmac

SECRET_PREFIX = "whsec_"
SECRET_BYTES = 32  # the specification asks for 24 to 64


def signed_headers(secret: str, identifier: str, timestamp: int, body: bytes) -> dict[str, str]:
    """The headers of one attempt; ``timestamp`` is in seconds since 1970 and the attempt's own."""
    key = base64.b64decode(secret.removeprefix(SECRET_PREFIX))
    code = hmac.new(key, b".".join((identifier.encode(), str(timestamp).encode(), body)), hashlib.sha256).digest()
    return {
        "webhook-id": identifier,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": f"v1,{base64.b64encode(code).decode()}",
    }
