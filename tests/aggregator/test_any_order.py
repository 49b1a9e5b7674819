"""Any number of devices that send anything in any order, with crashes in between: what must hold nevertheless."""

import hashlib
from dataclasses import replace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from aggregator.config import Mode
from aggregator.rounds.asynchronous import Buffer
from aggregator.rounds.machine import Phase
from aggregator.store.rows import AssignmentState, RoundPhase, UploadState
from protocol import messages
from protocol.assignment import Assignment
from protocol.errors import NackCode
from protocol.identity import upload_id

NAMES = "abcd"
DEVICES = st.sampled_from(NAMES)
TOKENS = st.sampled_from(["0" * 32, "f" * 32])
BINARY = st.binary(max_size=40)
SYNCHRONOUS = st.fixed_dictionaries(
    {
        "cohort_size": st.integers(1, 3),
        "over_selection": st.sampled_from([1.0, 2.0]),
        "quorum": st.just(1),
        "deadline_s": st.sampled_from([None, 50.0]),
    }
)
ASYNCHRONOUS = st.fixed_dictionaries(
    {
        "mode": st.just(Mode.ASYNC),
        "cohort_size": st.integers(1, 3),
        "concurrency": st.sampled_from([None, 3]),
        "staleness_max": st.integers(0, 2),
        "deadline_s": st.sampled_from([None, 50.0]),
    }
)


class AnyOrder(RuleBasedStateMachine):
    """The hub, and four devices without manners."""

    def __init__(self, new_world, settings):
        super().__init__()
        self.new_world, self.settings = new_world, settings
        self.acknowledged = {}
        self.given = {}
        self.world = None

    @initialize(data=st.data())
    def begin(self, data):
        self.world = self.new_world(rounds=3, update_norm_max=10.0, **data.draw(self.settings))
        self.connect()

    def connect(self):
        self.devices = {name: self.world.device(name) for name in NAMES if name not in self.revoked}

    @property
    def revoked(self):
        return {key[0] for key in self.world.standing}

    def heard(self, device):
        """Notes what a device was just told, and lets the aggregator act."""
        for message in device.inbox:
            if isinstance(message, messages.Task):
                given = Assignment.from_json(bytes(message.payload))
                self.given.setdefault(device.key[0], []).append(given)
            if isinstance(message, messages.Ack) and len(message.ref) == 64:
                self.acknowledged[message.ref] = device.key
        device.inbox.clear()

    def polled(self, after_s=0.0):
        """Lets the aggregator act, as the daemon does after every message."""
        self.world.poll(after_s)
        for device in self.devices.values():
            self.heard(device)

    def device(self, name):
        return self.devices.get(name) or next(iter(self.devices.values()))

    @rule(name=DEVICES)
    def reconnect(self, name):
        self.device(name).hello()

    @rule(rank=st.sampled_from([None, 1, 4]), residual=st.booleans())
    def everybody_asks(self, rank, residual):
        for device in [*self.devices.values()] * 2:
            device.ready(rank=rank, residual=residual)
            self.heard(device)

    @rule(name=DEVICES, rank=st.sampled_from([None, 9]), examples=st.integers(0, 1))
    def ask(self, name, rank, examples):
        device = self.device(name)
        device.ready(rank=rank, num_examples=examples)
        self.heard(device)

    @rule(data=st.data(), name=DEVICES, seed=st.integers(0, 2), size=st.sampled_from([0.0, 0.1, 100.0]))
    def deliver_some(self, data, name, seed, size):
        """Offers an update of any assignment it ever had, and sends some pieces of it."""
        device = self.device(name)
        mine = self.given.get(device.key[0])
        if not mine:
            return
        given = data.draw(st.sampled_from(mine))
        update = device.update(given, size=size, seed=seed)
        device.offer(given, update, num_examples=data.draw(st.integers(0, 2) | st.just(1)))
        self.heard(device)
        for offset in data.draw(st.sampled_from([(), (0,), (0, 60), (60,), (0, 0, 60), (0, 60, 500)])):
            device.chunk(given, update, offset, length=60 if offset == 0 else 1 << 20)
            self.heard(device)

    @rule(names=st.sets(DEVICES, min_size=1), seed=st.sampled_from([0, 0, 1]))
    def deliver(self, names, seed):
        """Some behave well for once."""
        for name in sorted(names):
            device = self.device(name)
            for given in self.given.get(device.key[0], [])[-1:]:
                device.hello()
                if not isinstance(device.offer(given, device.update(given, seed=seed)), messages.Credit):
                    continue
                device.chunk(given, device.update(given, seed=seed))
                self.polled()

    @rule(name=DEVICES, thief=DEVICES, token=TOKENS)
    def claim(self, name, thief, token):
        """Offers with a token that is nobody's, or another device's."""
        device, other = self.device(name), self.device(thief)
        for given in self.given.get(other.key[0], [])[-1:]:
            wrong = replace(given, token=token) if device is other else given
            device.offer(wrong, device.update(wrong))
            self.heard(device)

    @rule(name=DEVICES, other=DEVICES)
    def decline(self, name, other):
        device = self.device(name)
        device.hello()
        for given in self.given.get(self.device(other).key[0], [])[-1:]:
            device.say(messages.Decline(token=given.token, reason="busy" * 100))
            self.heard(device)

    @rule(name=DEVICES, frames=st.none() | st.lists(BINARY, max_size=3), offset=st.integers(0, 3000))
    def annoy(self, name, frames, offset):
        """Says what is illegal or garbage, asks for what is not there, and leaves."""
        device = self.device(name)
        if frames is not None:
            device.raw(*frames)
            return
        for digest in (self.world.manifest.digest, self.world.federation.version.body, "0" * 64):
            device.say(messages.Get(digest=digest, offset=offset, length=99))
        device.say(messages.Bye(reason=""))

    @rule(seconds=st.sampled_from([0.0, 1.0, 31.0, 60.0, 400.0]))
    def wait(self, seconds):
        self.polled(seconds)

    @rule(held=st.booleans())
    def hold_workers(self, held):
        self.world.hold_workers(held)

    @rule(name=DEVICES)
    def revoke(self, name):
        if len(self.devices) > 2:
            device = self.device(name)
            self.world.journal.enrol_client(device.key, name, 0.0)
            self.world.journal.revoke_client(device.key)
            self.world.federation.revoked(device.key, self.world.now)
            self.world.standing[device.key] = NackCode.REVOKED
            del self.devices[device.key[0]]

    @rule()
    def crash(self):
        self.world.restart()
        self.connect()

    # ---- what must hold

    @invariant()
    def every_acknowledged_update_is_kept(self):
        for upload, client in self.acknowledged.items():
            row = self.world.journal.upload(upload)
            assert row.client == client
            assert row.state in (UploadState.DURABLE, UploadState.MERGED)
            if row.state is UploadState.DURABLE or row.round == self.world.federation.version.version:
                assert hashlib.sha256(self.world.objects.view(row.sha256)).hexdigest() == row.sha256

    @invariant()
    def no_device_counts_twice_and_only_for_its_own_assignment(self):
        journal = self.world.journal if self.world else None
        for round_row in journal.rounds() if journal else []:
            kept = [
                row
                for row in journal.uploads(round_row.number)
                if row.state in (UploadState.DURABLE, UploadState.MERGED)
            ]
            assert len({row.client for row in kept}) == len(kept)
            for row in kept:
                given = journal.assignment(row.token)
                assert (given.client, given.state) == (row.client, AssignmentState.SUBMITTED)
                assert given.version == given.round - 1
                behind = self.world.config.staleness_max if self.world.config.mode is Mode.ASYNC else 0
                assert 0 <= row.round - given.round <= behind
                assert row.id == upload_id("run", given.round, row.client, row.token, row.sha256)
                expected = UploadState.MERGED if round_row.phase is RoundPhase.COMMITTED else UploadState.DURABLE
                assert row.state is expected

    @invariant()
    def journal_and_memory_agree(self):
        if self.world is None:
            return
        journal, federation = self.world.journal, self.world.federation
        rounds, state = journal.rounds(), federation.round
        assert federation.version.version == journal.versions()[-1].version == state.version
        open_rounds = [row for row in rounds if row.phase is not RoundPhase.COMMITTED]
        if isinstance(state, Buffer):
            self.buffer_agrees(state, open_rounds)
            return
        if state.phase is Phase.GATHERING:
            assert open_rounds == []
            return
        (row,) = open_rounds
        assert (row.number, row.phase is RoundPhase.CLOSING) == (state.number, state.phase is Phase.MERGING)
        durable = sorted(up.client for up in journal.uploads(row.number) if up.state is UploadState.DURABLE)
        assert list(state.submitted) == durable
        with_assignment = {given.client for given in journal.assignments(row.number)}
        assert set(state.in_state("assigned", "late", "submitted", "rejected")) <= with_assignment

    def buffer_agrees(self, state, open_rounds):
        journal = self.world.journal
        closing = [row.number for row in open_rounds if row.phase is RoundPhase.CLOSING]
        assert closing == ([state.number] if state.phase is Phase.MERGING else [])
        assert {row.number for row in open_rounds} <= {state.number, state.filling}
        for number, where in ((state.number, "submitted"), (state.number + 1, "early")):
            durable = [up.client for up in journal.uploads(number) if up.state is UploadState.DURABLE]
            assert list(state.in_state(where)) == sorted(durable)
        at_work = [row.client for row in journal.open_assignments()]
        assert list(state.in_state("assigned", "late")) == sorted(at_work)
        needed = journal.versions_trained(after=state.version)
        assert all(self.world.objects.has(journal.versions()[version].body_digest) for version in needed)

    @invariant()
    def only_uploads_under_way_take_room(self):
        if self.world is None:
            return
        live = set(self.world.federation._intake._uploads._live)
        checking = set(self.world.federation._intake._checking)
        receiving = {
            row.id
            for round_row in self.world.journal.rounds()
            for row in self.world.journal.uploads(round_row.number)
            if row.state is UploadState.RECEIVING
        }
        parts = {path.name for path in (self.world.folder / "store/partial").iterdir()}
        assert live <= receiving
        assert parts <= receiving | checking

    def teardown(self):
        if self.world is not None:
            self.finish_the_run()

    def finish_the_run(self):
        """Whatever happened, honest devices can bring the run to its end."""
        world = self.world
        self.world.hold_workers(False)
        helpers = [world.device(name) for name in "wxyz"]
        for _ in range(40):
            if world.federation.finished:
                break
            for device in helpers:
                device.hello()
                answer = device.ready()
                if isinstance(answer, messages.Task):
                    given = Assignment.from_json(bytes(answer.payload))
                    device.deliver_all(given, device.update(given))
            world.poll(after_s=60.0)
        assert world.federation.finished or world.config.deadline_s is None
        for upload in self.acknowledged:
            assert world.federation.finished is False or world.journal.upload(upload).state is UploadState.MERGED


@pytest.mark.parametrize(("mode", "examples"), [(SYNCHRONOUS, 20), (ASYNCHRONOUS, 12)], ids=["sync", "async"])
def test_no_order_of_messages_and_crashes_loses_or_doubles_an_update(new_world, mode, examples):
    run_state_machine_as_test(
        lambda: AnyOrder(new_world, mode),
        settings=settings(max_examples=examples, stateful_step_count=30, deadline=None),
    )
