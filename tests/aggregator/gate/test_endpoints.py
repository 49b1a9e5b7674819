import pytest

from aggregator.errors import ConfigError
from aggregator.gate.endpoints import ServeSettings, endpoints_to_bind
from aggregator.store.home import Endpoints

LAST = Endpoints(data="tcp://10.0.0.5:4001", enrolment="tcp://10.0.0.5:4007", advertise="hub.example")


@pytest.mark.parametrize(
    ("endpoint", "enrolment"),
    [
        (None, "tcp://127.0.0.1:7701"),
        ("tcp://127.0.0.1:9000", "tcp://127.0.0.1:9001"),
        ("tcp://127.0.0.1:0", "tcp://127.0.0.1:0"),
        ("tcp://127.0.0.1:*", "tcp://127.0.0.1:*"),
    ],
)
def test_enrolment_takes_the_next_port_unless_ports_are_free_to_choose(endpoint: str | None, enrolment: str) -> None:
    data, found, advertise = endpoints_to_bind(ServeSettings(endpoint=endpoint), None)
    assert (data, found, advertise) == (endpoint or "tcp://127.0.0.1:7700", enrolment, None)


def test_a_daemon_that_starts_again_listens_where_its_tickets_say() -> None:
    assert endpoints_to_bind(ServeSettings(), LAST) == (LAST.data, LAST.enrolment, "hub.example")
    assert endpoints_to_bind(ServeSettings(endpoint=LAST.data), LAST) == (LAST.data, LAST.enrolment, "hub.example")


def test_what_is_said_wins_over_what_is_remembered() -> None:
    settings = ServeSettings(
        endpoint="tcp://10.0.0.6:5000", enrolment_endpoint="tcp://10.0.0.6:6000", advertise="other.example"
    )
    assert endpoints_to_bind(settings, LAST) == ("tcp://10.0.0.6:5000", "tcp://10.0.0.6:6000", "other.example")
    assert endpoints_to_bind(ServeSettings(endpoint="tcp://10.0.0.6:5000"), LAST)[1] == "tcp://10.0.0.6:5001"


@pytest.mark.parametrize("endpoint", ["tcp://*:7700", "tcp://0.0.0.0:7700"])
def test_tickets_need_a_name_where_every_address_is_bound(endpoint: str) -> None:
    with pytest.raises(ConfigError, match="--advertise"):
        endpoints_to_bind(ServeSettings(endpoint=endpoint), None)
    assert endpoints_to_bind(ServeSettings(endpoint=endpoint, advertise="hub"), None)[2] == "hub"
