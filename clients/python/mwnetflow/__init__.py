"""Client of the NetFlow interface of MwComms: see every call of a protected server, act on its connections.

Needs nothing but Python's standard library. docs/netflow.md describes the messages.
"""

from ._requests import RequestError, address_of_session
from .aio import AsyncClient
from .blocking import Client
from .wire import (Congestion, Decoder, Endpoint, Feature, Flow, Kind, Observation, ProcessSample, ProtocolError,
                   Request, Response, Round, Sample, SampledRound, SampleFlag)

__all__ = ["AsyncClient", "Client", "Congestion", "Decoder", "Endpoint", "Feature", "Flow", "Kind", "Observation",
           "ProcessSample", "ProtocolError", "Request", "RequestError", "Response", "Round", "Sample",
           "SampledRound", "SampleFlag", "address_of_session"]
