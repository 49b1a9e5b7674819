"""Devices and aggregator over links that lose, repeat, reorder, cut and bend what they carry, and replay old bytes."""

import hashlib
from collections import Counter

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from aggregator.store.rows import UploadState
from protocol import messages
from protocol.assignment import Assignment
from protocol.errors import RemoteProtocolError
from protocol.identity import upload_id
from protocol.manifest import Quantization
from protocol.messages import Role
from protocol.session import Session
from protocol.states import State
from protocol.transfer import Sender

NAMES = "abc"
PIECE_BYTES = 70
SPOILT = st.dictionaries(st.integers(0, 40), st.sampled_from(["repeat", "lose", "cut", "bend", "frame"]), max_size=4)


class Link:
    """What travels one way between one connection and the aggregator."""

    def __init__(self):
        self.frames = []

    def put(self, frames):
        self.frames.append([bytes(frame) for frame in frames])

    def take(self, fate, data):
        """The next thing to arrive, if any: any one of those under way, spoilt as the fate says."""
        if not self.frames:
            return None
        index = data.draw(st.integers(0, min(3, len(self.frames) - 1)))
        frames = self.frames[index] if fate == "repeat" else self.frames.pop(index)
        number = data.draw(st.integers(0, len(frames) - 1)) if fate in ("cut", "bend") else 0
        frame, frames = frames[number], list(frames)
        if fate == "cut":
            frames[number] = frame[: data.draw(st.integers(0, max(0, len(frame) - 1)))]
        if fate == "bend" and frame:
            at, by = data.draw(st.integers(0, len(frame) - 1)), data.draw(st.integers(1, 255))
            frames[number] = frame[:at] + bytes([frame[at] ^ by]) + frame[at + 1 :]
        if fate == "frame":
            frames = data.draw(st.sampled_from([frames * 2, [*frames, b""], [b"", *frames], frames[1:]]))
        return None if fate == "lose" else frames


class Device:
    """A device that keeps the rules: one request open, and a new connection whenever it hears nothing sensible."""

    def __init__(self, world, name):
        self.world, self.body = world, world.stranger(name)
        self.key = self.body.key
        self.acknowledged = []
        self.given = self.upload = None
        self.reconnect()

    def reconnect(self):
        self.peer, self.session = self.world.new_peer(), Session(Role.CLIENT)
        self.up, self.down = Link(), Link()
        self.asking, self.sender = False, None

    def act(self):
        """Says the next thing, unless an answer is awaited."""
        if self.asking or self.session.state is State.CLOSED:
            return
        message = self.next_message()
        if message is not None:
            self.asking = True
            self.up.put(self.session.send(message))

    def next_message(self):
        if self.session.state is State.START:
            return messages.Hello(version_min=2, version_max=2, sdk="lossy")
        if self.session.state is State.UPLOADING:
            piece = self.sender.next_piece()
            payload = piece and self.update[piece.offset : piece.offset + piece.length]
            return piece and messages.Chunk(upload=self.upload, offset=piece.offset, payload=payload)
        if self.given is None:
            manifest = self.world.manifest
            return messages.Ready(
                run="run",
                manifest=manifest.digest,
                fingerprint=manifest.base.fingerprint,
                quantization=Quantization.NF4,
                rank=None,
                residual=False,
                num_examples=10,
            )
        digest = hashlib.sha256(self.update).hexdigest()
        return messages.Offer(
            upload=self.upload,
            token=self.given.token,
            size=len(self.update),
            sha256=digest,
            num_examples=10,
            metrics={},
        )

    def hear(self, frames):
        """Takes what arrives; what is not sensible ends the connection."""
        try:
            message = self.session.receive(frames)
            self.understand(message)
        except RemoteProtocolError:
            self.reconnect()

    def understand(self, message):
        self.asking = self.session.state in (State.GREETING, State.ASKING)  # what strays in is no answer to these
        match message:
            case messages.Task() if self.given is None:
                self.begin(Assignment.from_json(bytes(message.payload)))
            case messages.Credit() if message.upload == self.upload:
                if self.sender is None:
                    self.sender = Sender(len(self.update), PIECE_BYTES)
                    self.sender.resume(message.have, message.upto)
                self.sender.credit(message.have, message.upto)
            case messages.Ack() if message.ref == self.upload:
                self.acknowledged.append(self.upload)
                self.given = self.upload = None
            case messages.Nack():
                self.given = self.upload = None
                self.reconnect()

    def begin(self, given):
        if given.run != "run" or given.rank != 2:
            raise RemoteProtocolError("not what was asked for")
        self.given, self.update = given, self.body.update(given)
        digest = hashlib.sha256(self.update).hexdigest()
        self.upload = upload_id("run", given.round, self.key, given.token, digest)


class LossyLinks(RuleBasedStateMachine):
    """Three devices, one aggregator, and what lies between them."""

    def __init__(self, new_world):
        super().__init__()
        self.new_world, self.world = new_world, None
        self.recorded = []

    @initialize(cohort=st.integers(1, 2))
    def begin(self, cohort):
        self.world = self.new_world(rounds=2, cohort_size=cohort, over_selection=2.0, quorum=1, deadline_s=60.0)
        self.devices = {name: Device(self.world, name) for name in NAMES}

    def feed(self, peer, key, frames):
        """Gives the aggregator a message; nothing that it holds may make it raise."""
        for target, answer in self.world.hub.feed(peer, key, frames, self.world.now):
            for device in self.devices.values():
                if device.peer == target:
                    device.down.put(answer)

    def polled(self, after_s=0.0):
        self.world.now += after_s
        for target, answer in self.world.hub.poll(self.world.now):
            for device in self.devices.values():
                if device.peer == target:
                    device.down.put(answer)

    @rule(
        names=st.sets(st.sampled_from(NAMES), min_size=1),
        turns=st.integers(1, 20),
        up=SPOILT,
        down=SPOILT,
        data=st.data(),
    )
    def talk(self, names, turns, up, down, data):
        """Some devices and the aggregator take turns; some of what they say is spoilt, early or late."""
        devices = [self.devices[name] for name in sorted(names)] * turns
        for turn, device in enumerate(devices):
            device.act()
            arrived = device.up.take(up.get(turn, "deliver"), data)
            if arrived is not None:
                self.recorded.append(arrived)
                self.feed(device.peer, device.key, arrived)
            self.polled()
            arrived = device.down.take(down.get(turn, "deliver"), data)
            if arrived is not None:
                device.hear(arrived)

    @rule(name=st.sampled_from(NAMES), fresh=st.booleans(), data=st.data())
    def replay(self, name, fresh, data):
        """Says again what any device ever said, as this one, on its connection or on a new one."""
        device = self.devices[name]
        peer = self.world.new_peer() if fresh else device.peer
        for frames in self.recorded and data.draw(st.lists(st.sampled_from(self.recorded), max_size=6)):
            self.feed(peer, device.key, frames)

    @rule(name=st.sampled_from(NAMES))
    def time_out(self, name):
        self.devices[name].reconnect()

    @rule(seconds=st.sampled_from([0.0, 31.0, 61.0]))
    def wait(self, seconds):
        self.polled(seconds)

    @rule(held=st.booleans())
    def hold_workers(self, held):
        self.world.hold_workers(held)

    @rule()
    def crash(self):
        self.world.restart()
        for device in self.devices.values():
            device.reconnect()

    @invariant()
    def what_was_acknowledged_is_durable_and_counts_once(self):
        if self.world is None:
            return
        journal = self.world.journal
        kept = [
            row
            for round_row in journal.rounds()
            for row in journal.uploads(round_row.number)
            if row.state in (UploadState.DURABLE, UploadState.MERGED)
        ]
        assert max(Counter((row.round, row.client) for row in kept).values(), default=1) == 1
        assert {upload for device in self.devices.values() for upload in device.acknowledged} <= {r.id for r in kept}
        for row in kept:
            if row.state is UploadState.DURABLE:
                assert hashlib.sha256(self.world.objects.view(row.sha256)).hexdigest() == row.sha256

    def teardown(self):
        if self.world is not None:
            self.heal()

    def heal(self):
        """Once the links carry what is put on them, in order, the run comes to its end."""
        self.world.hold_workers(False)
        for device in self.devices.values():
            device.reconnect()
        for _ in range(600):
            if self.world.federation.finished:
                break
            for device in self.devices.values():
                device.act()
                while device.up.frames:
                    self.feed(device.peer, device.key, device.up.frames.pop(0))
                self.polled(after_s=1.0)
                while device.down.frames:
                    device.hear(device.down.frames.pop(0))
        assert self.world.federation.finished
        self.what_was_acknowledged_is_durable_and_counts_once()


def test_no_link_however_bad_loses_or_doubles_an_update_and_a_good_one_ends_the_run(new_world):
    run_state_machine_as_test(
        lambda: LossyLinks(new_world), settings=settings(max_examples=15, stateful_step_count=30, deadline=None)
    )
