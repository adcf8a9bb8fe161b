#!/usr/bin/env python3
"""Closes connections that sent less than a kilobyte in ten seconds. usage: example.py [SESSION [SECONDS]]"""
import sys

from mwnetflow import Client, RequestError, SampleFlag

LEAST_BYTES = 1000
session = sys.argv[1] if len(sys.argv) > 1 else None
grace = float(sys.argv[2]) if len(sys.argv) > 2 else 10.0

with Client(session=session) as engine:
    engine.monitor(False)  # samples tell of silent sockets too
    engine.sample(0.25)
    for sampled in engine.rounds():
        for one in sampled.samples:
            accepted = SampleFlag.INBOUND in one.flags and SampleFlag.LISTENER not in one.flags
            if not accepted or one.bytes_in >= LEAST_BYTES or (one.age or 0) <= grace:
                continue
            try:
                engine.close_socket(one.socket)
                print(f"closed {one.socket}", flush=True)
            except RequestError as error:
                print(error)  # it was faster
