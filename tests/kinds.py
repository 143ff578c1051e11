"""The kinds of payload that a user may ask for, and one value of each."""

from dataclasses import dataclass
from typing import Any, NamedTuple, TypedDict

import msgspec
import pydantic


@dataclass
class Leg:
    symbol: str
    price: float


@dataclass
class AsDataclass:
    price: float
    legs: list[Leg]


class AsStruct(msgspec.Struct):
    price: float
    legs: list[Leg]


class AsModel(pydantic.BaseModel):
    price: float
    legs: list[Leg]


class LegDict(TypedDict):
    symbol: str
    price: float


class AsTypedDict(TypedDict):
    price: float
    legs: list[LegDict]


class Kind(NamedTuple):
    """What is asked for, what is published, and what a consumer has to get."""

    payload: Any
    published: Any
    got: Any


PLAIN: dict[str, Any] = {"price": 1.5, "legs": [{"symbol": "BTC", "price": 2.5}]}
LEGS = [Leg("BTC", 2.5)]
KINDS = {
    "dict": Kind(dict, PLAIN, PLAIN),
    "dataclass": Kind(AsDataclass, AsDataclass(1.5, LEGS), AsDataclass(1.5, LEGS)),
    "Struct": Kind(AsStruct, AsStruct(1.5, LEGS), AsStruct(1.5, LEGS)),
    "pydantic": Kind(AsModel, AsModel(price=1.5, legs=LEGS), AsModel(price=1.5, legs=LEGS)),
    "TypedDict": Kind(AsTypedDict, PLAIN, PLAIN),
    "list": Kind(
        list[AsStruct], [AsStruct(1.5, LEGS), AsStruct(2.5, [])],
        [AsStruct(1.5, LEGS), AsStruct(2.5, [])],
    ),
}  # fmt: skip
"""By name. The data of each may be published as plain data as well."""
