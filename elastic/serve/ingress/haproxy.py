"""What Ray's HAProxy has to be told and Ray has no setting for.

As Ray configures it, a connection that never sends a whole request stays open for an hour, and a call that finds
neither a replica nor Serve's own proxy ends with HTTP 500: UNKNOWN to gRPC, which no client repeats; and everybody may
read its metrics and statistics. Ray writes the configuration anew before each start of HAProxy, so it gets a script to
start in its place, which completes it first.
"""

import shlex
from pathlib import Path

from elastic.errors import ServerUnavailable
from elastic.serve.api.http import error_response

REQUEST_HEAD_S = 10
"""How long a connection may take to agree on TLS, and from its first byte to the end of the head of a request."""
SILENCE_S = 300
"""How long a client may send nothing: on a new connection, in the middle of a request, or in a stream that waits for
its next message. Connections between calls are kept for 90 s, Ray's own choice."""
UPLOAD_BYTES = 2**20
"""How much of a request a gRPC client may send before it hears that some of it was read: all of most photos.

With the 64 KiB of Ray's configuration each further part of that size costs a round trip to the client. More than this
only lets the large requests of a connection hold up its small ones.
"""

# Ray calls it as `SCRIPT -db -f CONFIGURATION ...`. Without the lines that are looked for it would not be Ray's.
SCRIPT = r"""#!/bin/sh
set -e
sed -i -E -e 's|^defaults$|&\n    timeout http-request {head_s}s|' -e 's|^( *errorfile 50[234]) .*|\1 {page}|' "$3"
sed -i -E "s/bind \*?:($RAY_SERVE_HAPROXY_METRICS_PORT|$RAY_SERVE_HAPROXY_STATS_PORT)$/bind 127.0.0.1:\1/" "$3"
grep -q 'timeout http-request' "$3"
grep -q 'errorfile 503 {page}' "$3"
exec {haproxy} "$@"
"""


def write_script(folder: Path, haproxy: str, head_s: int = REQUEST_HEAD_S) -> Path:
    """The program for Ray to start in place of `haproxy`."""
    page, script = folder / "unavailable.http", folder / "haproxy.sh"
    page.write_bytes(unavailable_page())
    script.write_text(SCRIPT.format(head_s=head_s, page=page, haproxy=shlex.quote(haproxy)), encoding="utf-8")
    script.chmod(0o700)
    return script


def unavailable_page() -> bytes:
    """The HTTP answer of a server without replicas, in full; gRPC clients go by its status: UNAVAILABLE."""
    response = error_response(ServerUnavailable("server", "no replica answers", "call again"))
    headers = b"".join(b"%s: %s\r\n" % header for header in response.raw_headers)
    return b"HTTP/1.1 503 Service Unavailable\r\n" + headers + b"\r\n" + bytes(response.body)
