"""Client of the NetFlow interface of MwComms: see every call of a protected server, act on its connections.

Needs nothing but Python's standard library. docs/netflow.md describes the messages.
"""

from ._requests import Changed, MinRate, RequestError, address_of_session
from .aio import AsyncClient
from .blocking import Client
from .wire import (Congestion, Decoder, Endpoint, ExtendedObservation, ExtendedRequest, Feature, Flow, FlowFlag,
                   Kind, Observation, ProcessSample, ProtocolError, Request, Response, Round, Rule, RuleState, Sample, SampledRound, SampleFlag)

__all__ = ["AsyncClient", "Changed", "Client", "Congestion", "Decoder", "Endpoint", "ExtendedObservation",
           "ExtendedRequest", "Feature", "Flow", "FlowFlag", "Kind", "MinRate", "Observation", "ProcessSample", "ProtocolError", "Request", "RequestError",
           "Response", "Round", "Rule", "RuleState", "Sample", "SampledRound", "SampleFlag", "address_of_session"]
