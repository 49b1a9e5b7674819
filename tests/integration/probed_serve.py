"""``serve`` with a probe in it, for tests: counts what reaches the core, and fails where it is told to.

Its one argument is JSON: ``home``; ``failing_lookups``, how many of the first questions whether a key is enrolled
raise; ``handshake_ms``, the time a handshake may take. libzmq's generator is put back to the seed it has in a process
that never seeds it, so that an attacker knows every number it will give. When the daemon ends, the last line says
how many messages of each key reached the hub.
"""

import ctypes
import json
import sys
from collections import Counter
from pathlib import Path

import zmq

from aggregator import daemon
from aggregator.gate import router
from aggregator.gate.authentication import Gate
from aggregator.gate.endpoints import ServeSettings
from aggregator.hub import Hub
from aggregator.store.home import Home


def main() -> None:
    told = json.loads(sys.argv[1])
    router._OPTIONS[zmq.HANDSHAKE_IVL] = told["handshake_ms"]
    fed: Counter[str] = Counter()
    probe(fed, told["failing_lookups"])
    serve_run(Path(told["home"]))
    print(json.dumps(fed), flush=True)


def serve_run(home: Path) -> None:
    settings = ServeSettings(endpoint="tcp://127.0.0.1:0")
    daemon.serve(Home(home), settings, lambda bound: print(json.dumps(bound.data), flush=True))


def probe(fed: Counter[str], failing: int) -> None:
    feed, make_gate = Hub.feed, Gate.__init__

    def counted(hub, peer, key, frames, now):
        fed[key] += 1
        return feed(hub, peer, key, frames, now)

    def guarded(gate, context, admits, clock):
        lookups = iter(range(failing))

        def failing_admits(key):
            if next(lookups, None) is not None:
                raise RuntimeError("the lookup failed")
            return admits(key)

        make_gate(gate, context, failing_admits, clock)
        ctypes.CDLL(None).srand(1)

    Hub.feed, Gate.__init__ = counted, guarded


if __name__ == "__main__":
    main()
