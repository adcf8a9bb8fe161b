#!/usr/bin/env python3
"""Closes connections that sent less than a kilobyte in ten seconds. usage: example.py [SESSION]"""
import sys

from mwnetflow import Client, Kind, RequestError

GRACE_SECONDS, LEAST_BYTES = 10, 1000

with Client(session=sys.argv[1] if len(sys.argv) > 1 else None) as engine:
    opened = {}
    for seen in engine.observations():
        if seen.kind is Kind.ACCEPT:
            opened[seen.extra] = seen.now
        elif seen.kind is Kind.CLOSE:
            opened.pop(seen.socket, None)
        elif seen.bytes_in >= LEAST_BYTES:
            opened.pop(seen.socket, None)
        late = [s for s, since in opened.items() if seen.now - since > GRACE_SECONDS]
        for socket in late:
            del opened[socket]
            try:
                engine.close_socket(socket)
                print(f"closed {socket}")
            except RequestError as error:
                print(error)  # it was faster
