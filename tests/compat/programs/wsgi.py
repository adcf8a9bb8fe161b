"""A WSGI application: /N answers N bytes in pieces, POST answers what it was sent, /pid tells the worker."""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from closing import body  # noqa: E402  (needs the path above)


def application(environ, start_response):
    if environ["REQUEST_METHOD"] == "POST":
        answer = environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))
    elif environ["PATH_INFO"] == "/pid":
        answer = b"%d" % os.getpid()
    else:
        answer = body(int(environ["PATH_INFO"].strip("/")))
    start_response("200 OK", [("Content-Type", "application/octet-stream"), ("Content-Length", str(len(answer)))])
    return [answer[i:i + 50000] for i in range(0, len(answer), 50000)]
