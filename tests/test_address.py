"""Which addresses a URL may name and which endpoints a member may have."""

import pytest

from aiobus.discovery.roster import Address, address_of, addresses_in


def test_several_addresses_are_separated_by_commas() -> None:
    assert addresses_in("localhost:7555,127.0.0.2:7556,[::1]:7557") == [
        Address("127.0.0.1", 7555),
        Address("127.0.0.2", 7556),
        Address("::1", 7557),
    ]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "the port '' is not a number from 1 to 65535"),
        ("localhost", "the port '' is not a number from 1 to 65535"),
        ("localhost:", "the port '' is not"),
        ("localhost:http", "the port 'http' is not"),
        ("localhost:7555/desk", "the port '7555/desk' is not"),
        ("localhost:0", "the port '0' is not .* write a free one, such as tcp://localhost:7555"),
        ("localhost:65536", "the port '65536' is not"),
        ("localhost:-1", "the port '-1' is not"),
        ("localhost:\u0667", "the port '\u0667' is not"),
        ("localhost:7555,", "^tcp://: the port '' is not"),
        (",localhost:7555", "^tcp://: the port '' is not"),
        ("*:7555", r"tcp://\*:7555: nobody can connect to \*; .* such as tcp://localhost:7555"),
        ("0.0.0.0:7555", "nobody can connect to 0.0.0.0"),
        (":::7555", "nobody can connect to ::;"),
        ("[::]:7555", r"nobody can connect to \[::\]"),
        ("::1:7555", r"an IPv6 address stands in brackets, such as \[::1\]:7555"),
        ("[127.0.0.1]:7555", "is not this machine"),
        (":7555", "'' is not this machine"),
        ("desk.example.com:7555", "'desk.example.com' is not this machine"),
        ("192.168.0.7:7555", "other hosts come with keys in a later version"),
        ("127.1:7555", "'127.1' is not this machine"),
        ("localhost:7555, localhost:7556", "' localhost' is not this machine"),
        ("localhost:7555,127.0.0.1:7555", "names 127.0.0.1:7555 twice; leave one of them out"),
        (",".join(f"localhost:{7000 + i}" for i in range(9)), "names 9 addresses, more than 8"),
    ],
)
def test_an_address_that_cannot_be_served_is_refused_with_a_way_out(
    text: str, sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        addresses_in(text)


@pytest.mark.parametrize(
    "endpoint", ["tcp://127.0.0.1:1", "tcp://127.9.8.7:65535", "tcp://[::1]:5"]
)
def test_an_endpoint_and_its_address_are_each_the_others_only_spelling(endpoint: str) -> None:
    address = address_of(endpoint)
    assert address is not None
    assert address.endpoint == endpoint


@pytest.mark.parametrize(
    "endpoint",
    [
        *("", "tcp://", "127.0.0.1:5", "ipc:///tmp/x", "tcp://127.0.0.1", "tcp://127.0.0.1:0"),
        *("tcp://127.0.0.1:65536", "tcp://127.0.0.1:05", "tcp://127.0.0.1:*", "tcp://*:5"),
        *("tcp://localhost:5", "tcp://10.0.0.1:5", "tcp://::1:5", "tcp://127.0.0.1:5 "),
        *("tcp://127.0.0.1:5;127.0.0.1:6", "tcp://tcp://127.0.0.1:5"),
    ],
)
def test_what_is_no_literal_endpoint_of_this_machine_has_no_address(endpoint: str) -> None:
    assert address_of(endpoint) is None


def test_an_address_is_written_as_in_a_url() -> None:
    assert [str(address) for address in addresses_in("127.0.0.1:5,[::1]:6")] == [
        "127.0.0.1:5",
        "[::1]:6",
    ]
    assert Address("::1", 6).with_port("*") == "tcp://[::1]:*"
