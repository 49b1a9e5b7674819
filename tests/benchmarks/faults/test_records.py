import signal
import subprocess
import sys
from pathlib import Path

from benchmarks.faults.records import Recorder, RecordReader, read_records


def test_what_was_told_before_a_kill_is_there_and_the_next_life_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "record"
    code = (
        "import os, signal, sys; from pathlib import Path; from benchmarks.faults.records import Recorder\n"
        "recorder = Recorder(Path(sys.argv[1]))\n"
        "for number in range(100): recorder.tell('number', value=number)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    for _ in range(2):
        assert subprocess.run([sys.executable, "-c", code, path], check=False).returncode == -signal.SIGKILL
    found = read_records(path)
    assert [record.fields["value"] for record in found] == [*range(100), *range(100)]
    assert [record.at for record in found] == sorted(record.at for record in found)


def test_a_reader_gives_each_record_once_and_waits_for_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "record"
    reader = RecordReader(path)
    assert reader.new() == []
    recorder = Recorder(path)
    recorder.tell("first")
    with path.open("ab") as file:
        file.write(b'{"at": 1.0, "kind": "second", ')
        file.flush()
        assert [record.kind for record in reader.new()] == ["first"]
        file.write(b'"fields": {}}\n')
    assert [record.kind for record in reader.new()] == ["second"]
    assert reader.new() == []
