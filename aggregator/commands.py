"""The commands: each checks its flags and returns a plan; the plan does it and says what came of it.

Every flag arrives as text. What only a plan needs is imported when it runs, so that help and mistakes come fast.
"""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from json import dumps, loads
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aggregator.settings import SETTINGS, UsageError, parse_duration_s, parse_number, parse_switch, run_config
from aggregator.workers.cluster import parse_merge_workers

if TYPE_CHECKING:
    from protocol.manifest import Manifest

__all__ = ["COMMANDS", "Outcome", "Plan", "say"]

_LEVELS = ("debug", "info", "warning", "error")
_LOADERS = {"peft": "peft.PeftModel.from_pretrained", "tributary": "edge_client.load_exported"}
"""By the format of an export, what loads it."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a command has to say."""

    data: Mapping[str, Any]
    """For programs: ``--json`` prints it."""
    text: str
    """For people."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A command that is checked and not yet done."""

    run: Callable[[], Outcome]
    """Does it."""
    json: bool
    """Whether the outcome is printed as JSON."""
    log_level: str = "warning"
    """What is logged to standard error."""

    def __dir__(self) -> list[str]:
        return []  # fire takes left-over arguments for members


def init(
    home: str, *, manifest: str, run: str = "", from_adapter: str = "", json: str = "false", **settings: str
) -> Plan:
    """Makes the home of a run.

    Args:
        home: Folder to make.
        manifest: The run's manifest, as `tributary-client manifest` writes it.
        run: Run id; the folder's name if left out.
        from_adapter: What to start from, an exported run or any PEFT LoRA folder; the base model as it is if left out.
        json: Print JSON.
        settings: The run's settings, and how the devices train.
    """
    config = run_config(run or Path(home).resolve().name, settings)

    def do() -> Outcome:
        from aggregator.adapters.warm_start import start_from_folder
        from aggregator.runs import create_run

        universe = _manifest(Path(manifest))
        start = start_from_folder(Path(from_adapter), universe) if from_adapter else None
        made = create_run(Path(home), config, universe, start)
        return Outcome(
            data={"home": str(made.root), "run": config.run, "manifest": universe.digest, "rounds": config.rounds},
            text=f"run {config.run!r}: {config.rounds} rounds of {config.cohort_size} updates, in {made.root}\n"
            f"next: tributary-aggregator serve {home}",
        )

    return Plan(run=do, json=parse_switch("json", json))


init.__signature__ = inspect.Signature(  # type: ignore[attr-defined]  # fire shows and checks these flags
    [
        *(p for p in inspect.signature(init).parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD),
        *(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=s.default) for name, s in SETTINGS.items()),
    ]
)
init.__doc__ = (init.__doc__ or "") + "".join(f"    {name}: {s.help}\n    " for name, s in SETTINGS.items())


def serve(
    home: str,
    *,
    endpoint: str = "",
    enrolment_endpoint: str = "",
    advertise: str = "",
    merge_workers: str = "",
    log_level: str = "info",
    json: str = "false",
) -> Plan:
    """Runs the daemon until SIGTERM, SIGINT or `stop`. Prints one line as soon as devices can connect.

    Args:
        home: The run's home.
        endpoint: Where devices talk, tcp://ADDRESS:PORT, port 0 for a free one; where it was before if left out.
        enrolment_endpoint: Where tickets are redeemed; the next port if left out.
        advertise: Name or address by which devices reach this host, for tickets; the bound one if left out.
        merge_workers: Processes that one merge may use, each with a CPU core and memory, one a core if left out; or a
            Ray cluster: ray:HOST:PORT, ray-files:HOST:PORT if its nodes have this home under the same path.
        log_level: debug, info, warning or error; to standard error.
        json: Print JSON.
    """
    if log_level not in _LEVELS:
        raise UsageError(f"--log_level: expected one of {', '.join(_LEVELS)}, got {log_level!r}")
    as_json = parse_switch("json", json)
    workers = parse_merge_workers(merge_workers)

    def do() -> Outcome:
        from aggregator.daemon import serve as serve_home
        from aggregator.gate.endpoints import ServeSettings
        from aggregator.store.home import Endpoints, Home

        def ready(bound: Endpoints) -> None:
            data = {"serving": where.config().run, "endpoint": bound.data, "enrolment_endpoint": bound.enrolment}
            say(Outcome(data=data, text=f"serving run {data['serving']!r} on {bound.data}"), as_json)

        where = Home(Path(home))
        settings = ServeSettings(
            endpoint=endpoint or None,
            enrolment_endpoint=enrolment_endpoint or None,
            advertise=advertise or None,
            merge_workers=workers,
        )
        serve_home(where, settings, ready)
        return Outcome(data={"stopped": True}, text="stopped")

    return Plan(run=do, json=as_json, log_level=log_level)


def invite(home: str, *, out: str = "", expires: str = "24h", json: str = "false") -> Plan:
    """Writes a ticket: all that one device needs to join.

    Args:
        home: The run's home.
        out: File to write; RUN-NUMBER.ticket in this folder if left out.
        expires: How long its one-time token works, such as 30m, 24h or 7d.
        json: Print JSON.
    """
    expires_s = parse_duration_s("expires", expires)

    def do() -> Outcome:
        result = _command(home, "invite", expires_s=expires_s)
        path = Path(out) if out else _free_path(Path(home).resolve().name)
        _write_secret(path, result["ticket"].encode())
        data = {"ticket": str(path), "endpoint": result["endpoint"], "expires_at": result["expires_at"]}
        return Outcome(
            data=data, text=f"wrote {path}; hand it to one device: tributary-client join {path.name} --data …"
        )

    return Plan(run=do, json=parse_switch("json", json))


def enroll(home: str, key: str, *, name: str = "", json: str = "false") -> Plan:
    """Enrols a device by hand; takes a revoked one back.

    Args:
        home: The run's home.
        key: The device's public key, as `tributary-client keygen` prints it; quote it. --key=KEY if it begins with -.
        name: What to call the device.
        json: Print JSON.
    """
    return _simple(home, json, "enroll", "enrolled {id} {name}", key=key, name=name)


def revoke(home: str, who: str, *, json: str = "false") -> Plan:
    """Shuts a device out, at once.

    Args:
        home: The run's home.
        who: Its key, id or name.
        json: Print JSON.
    """
    return _simple(home, json, "revoke", "revoked {id} {name}", who=who)


def extend(home: str, rounds: str, *, json: str = "false") -> Plan:
    """Adds rounds to a run, finished or not.

    Args:
        home: The run's home.
        rounds: How many.
        json: Print JSON.
    """
    count = parse_number("ROUNDS", rounds, int)
    return _simple(home, json, "extend", "the run has {rounds} rounds now", rounds=count)


def stop(home: str, *, json: str = "false") -> Plan:
    """Ends the daemon; nothing is lost, and `serve` goes on where it was.

    Args:
        home: The run's home.
        json: Print JSON.
    """
    return _simple(home, json, "stop", "the daemon is stopping")


def status(home: str, *, json: str = "false") -> Plan:
    """Says where a run is, and why it waits.

    Args:
        home: The run's home.
        json: Print JSON.
    """

    def do() -> Outcome:
        found = _command(home, "status")
        return Outcome(data=found, text=_status_text(found))

    return Plan(run=do, json=parse_switch("json", json))


def export(
    home: str,
    *,
    out: str,
    rank: str = "",
    version: str = "",
    format: str = "",
    overwrite: str = "false",
    json: str = "false",
) -> Plan:
    """Writes the adapter as a folder: PEFT's own where that can hold the run's method, else one for every method.

    Args:
        home: The run's home; its daemon may run.
        out: Folder to write.
        rank: LoRA rank to export at; the run's highest if left out.
        version: Version to export; the latest if left out.
        format: peft (peft.PeftModel.from_pretrained loads it) or tributary (edge_client.load_exported does); what fits
            the run if left out.
        overwrite: Replace a folder that is not empty.
        json: Print JSON.
    """
    slots = parse_number("--rank", rank, int) if rank else None
    number = parse_number("--version", version, int) if version else None
    replace = parse_switch("overwrite", overwrite)
    if format not in ("", *_LOADERS):
        raise UsageError(f"--format: expected one of {', '.join(_LOADERS)}, got {format!r}")

    def do() -> Outcome:
        from aggregator.adapters.export import ExportFormat, export_version
        from aggregator.store.home import Home

        chosen = ExportFormat(format) if format else None
        exported = export_version(
            Home(Path(home)), Path(out), rank=slots, version=number, format=chosen, overwrite=replace
        )
        at_rank = "" if exported.rank is None else f" at rank {exported.rank}"
        return Outcome(
            data={"out": out, **asdict(exported)},
            text=f"wrote version {exported.version}{at_rank} to {out}; {_LOADERS[exported.format]} loads it",
        )

    return Plan(run=do, json=parse_switch("json", json))


def merge(
    *folders: str,
    out: str = "",
    o: str = "",
    rank: str = "",
    weights: str = "",
    overwrite: str = "false",
    json: str = "false",
) -> Plan:
    """Merges PEFT LoRA folders of any ranks, α and rsLoRA in product space, without a run.

    Args:
        folders: Two or more folders.
        out: Folder to write.
        o: The same.
        rank: LoRA rank of the result; the exact rank of each module if left out.
        weights: Comma-separated, one per folder, such as 3,1,1; all alike if left out.
        overwrite: Replace a folder that is not empty.
        json: Print JSON.
    """
    target = out or o
    if not folders or not target:
        raise UsageError("expected `merge FOLDER FOLDER … --out FOLDER`")
    slots = parse_number("--rank", rank, int) if rank else None
    shares = [parse_number("--weights", part, float) for part in weights.strip("[]() ").split(",")] if weights else None
    replace = parse_switch("overwrite", overwrite)

    def do() -> Outcome:
        from aggregator.adapters.merge_folders import merge_folders

        report = merge_folders([Path(f) for f in folders], shares, slots, Path(target), overwrite=replace)
        modules = len(report.modules)
        return Outcome(
            data={"out": target, "folders": report.clients, "report": [loads(line) for line in report.lines(0)]},
            text=f"merged {report.clients} adapters of {modules} modules into {target}",
        )

    return Plan(run=do, json=parse_switch("json", json))


COMMANDS: Mapping[str, Callable[..., Plan]] = {
    command.__name__: command for command in (init, serve, invite, enroll, revoke, status, extend, stop, export, merge)
}
"""Every command, by the name it is typed with."""


def _simple(home: str, json: str, command: str, text: str, **arguments: object) -> Plan:
    def do() -> Outcome:
        result = _command(home, command, **arguments)
        return Outcome(data=result, text=text.format(**result).strip())

    return Plan(run=do, json=parse_switch("json", json))


def _command(home: str, name: str, /, **arguments: object) -> dict[str, Any]:
    from aggregator.control import command
    from aggregator.store.home import Home

    return command(Home(Path(home)), name, **arguments)


def _manifest(path: Path) -> Manifest:
    from aggregator.errors import ConfigError
    from protocol.errors import RemoteProtocolError
    from protocol.manifest import Manifest

    try:
        return Manifest.from_json(path.read_bytes())
    except (OSError, RemoteProtocolError) as error:
        raise ConfigError(f"{path} cannot be used: {error}") from error


def _free_path(stem: str) -> Path:
    number = 1
    while (path := Path(f"{stem}-{number}.ticket")).exists():
        number += 1
    return path


def _write_secret(path: Path, data: bytes) -> None:
    """A ticket holds a token: its owner alone may read it."""
    from aggregator.errors import ConfigError

    try:
        path.touch(mode=0o600)
        path.chmod(0o600)
        path.write_bytes(data)
    except OSError as error:
        raise ConfigError(f"cannot write the ticket: {error}; name another file with --out") from error


def say(outcome: Outcome, as_json: bool) -> None:
    """Prints what a command has to say, at once: a program may be waiting for the line."""
    try:
        print(dumps(outcome.data) if as_json else outcome.text, flush=True)
    except BrokenPipeError:  # whoever read has heard enough; that is no reason to fail
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _status_text(found: Mapping[str, Any]) -> str:
    head = f"run {found['run']}: round {min(found['round'], found['rounds'])} of {found['rounds']}, {found['phase']}"
    rows = [
        f"  {d['id']}  {d['name'] or '-':20}  {d['state']}  {d.get('reason') or ''}".rstrip() for d in found["devices"]
    ]
    spent = "" if found.get("epsilon") is None else f", ε = {found['epsilon']:.4g}"
    return "\n".join([f"{head}, version {found['version']}{spent}", f"waiting for {found['waiting_for']}", *rows])
