"""The device's key file."""

from __future__ import annotations

import json
import stat

import pytest
import zmq

from edge_client.errors import ConfigError
from edge_client.storage.keys import create_key, load_key


def test_a_key_is_read_back_and_only_its_owner_can_read_the_file(tmp_path):
    made = create_key(tmp_path / "k")
    assert load_key(tmp_path / "k") == made
    assert stat.S_IMODE((tmp_path / "k").stat().st_mode) == 0o600
    assert made.secret not in repr(made)


def test_the_same_secret_gives_the_same_key(tmp_path):
    made = create_key(tmp_path / "one", bytes(range(32)))
    assert made == load_key(tmp_path / "one") == create_key(tmp_path / "two", bytes(range(32)))
    assert made != create_key(tmp_path / "three") != create_key(tmp_path / "four")


def test_a_key_is_never_overwritten(tmp_path):
    made = create_key(tmp_path / "k")
    with pytest.raises(ConfigError, match="never overwritten"):
        create_key(tmp_path / "k")
    assert load_key(tmp_path / "k") == made


def test_a_key_that_others_can_read_is_refused(tmp_path):
    create_key(tmp_path / "k")
    (tmp_path / "k").chmod(0o640)
    with pytest.raises(ConfigError, match="chmod 600"):
        load_key(tmp_path / "k")


@pytest.mark.parametrize("content", [b"", b"[]", b'{"format":"tributary-key/1","public":"a","secret":"b"}'])
def test_what_is_no_key_is_refused_with_the_files_name(tmp_path, content):
    (tmp_path / "k").write_bytes(content)
    with pytest.raises(ConfigError, match="keygen"):
        load_key(tmp_path / "k")


def test_halves_of_two_keys_are_refused(tmp_path):
    create_key(tmp_path / "k")
    fields = json.loads((tmp_path / "k").read_text()) | {"public": zmq.curve_keypair()[0].decode()}
    (tmp_path / "k").write_text(json.dumps(fields))
    with pytest.raises(ConfigError, match="does not belong"):
        load_key(tmp_path / "k")
