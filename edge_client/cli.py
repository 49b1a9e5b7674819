"""The command ``tributary-client``: describe a run, make a key, join, leave, merge what a run exported.

fire calls a command first and complains about unknown flags afterwards, and takes any value for any argument. So a
command here only checks its arguments and returns a plan; :func:`main` carries it out once fire is content.

Exit codes: 0 done; 1 any other error; 2 usage or configuration; 3 refused by the aggregator; 4 bad data; 5 wrong base
model; 130 interrupted.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import fire

from edge_client.client import EdgeClient
from edge_client.config import read_ticket
from edge_client.errors import (
    AggregatorError,
    BaseModelError,
    ConfigError,
    DataError,
    EdgeClientError,
    NotEnrolledError,
    TicketError,
)
from edge_client.exported import save_merged
from edge_client.model.quiet import silence_kernel_hint
from edge_client.status import RoundResult
from edge_client.storage.files import write_durably
from edge_client.storage.home import Home, default_folder
from edge_client.storage.keys import create_key
from protocol.errors import LocalProtocolError
from protocol.identity import client_id
from protocol.manifest import Pooling, Task, TaskKind

__all__ = ["main"]

_EXIT_CODES: Mapping[type[EdgeClientError], int] = {
    ConfigError: 2,
    TicketError: 3,
    NotEnrolledError: 3,
    AggregatorError: 3,
    DataError: 4,
    BaseModelError: 5,
}
_USAGE = "usage: tributary-client manifest|keygen|join|leave|merge-export …; see `tributary-client COMMAND --help`"


class Plan:
    """What a command would do. It holds nothing, since fire offers and calls whatever a result holds."""


_ACTIONS: WeakKeyDictionary[Plan, tuple[Callable[[], dict[str, Any]], bool]] = WeakKeyDictionary()
"""What each plan does, giving what to print, and whether to print that as JSON."""


def _planned(action: Callable[[], dict[str, Any]], as_json: bool) -> Plan:
    plan = Plan()
    _ACTIONS[plan] = action, as_json
    return plan


def _execute(plan: Plan) -> int:
    action, as_json = _ACTIONS[plan]
    try:
        result = action()
    except EdgeClientError as error:
        return _complain(error, as_json=as_json)
    if as_json:
        print(json.dumps(result))
    else:
        print("\n".join(f"{name.replace('_', ' ')}: {value}" for name, value in result.items()))
    return 0


class Commands:
    """Federated fine-tuning on this device. The data stays here; a LoRA update travels."""

    def manifest(
        self,
        model: str,
        task: str,
        out: str,
        *,
        labels: str = "",
        max_length: int = 128,
        pooling: str = "model",
        template: str | None = None,
        rank_max: int = 16,
        method: str = "lora",
        target_modules: str = "",
        method_options: str = "",
        json: bool = False,
    ) -> Plan:
        """Describe a run: read a base model, write the manifest that `tributary-aggregator init` needs.

        Args:
            model: Hub id or folder of the base model.
            task: classification, regression, embedding, causal-lm or image-classification.
            out: File to write.
            labels: Label names in the order of their index, separated by commas (both classifications).
            max_length: Tokens after which a text is cut.
            pooling: How the states of tokens or patches become one vector: model, mean or cls.
            template: Text with {column} places that makes the prompt (causal-lm).
            rank_max: Highest rank a device may train.
            method: How to tune: full, head, bitfit, lora, adapter, prefix, prompt or vpt.
            target_modules: Suffixes of the layers that lora tunes, separated by commas; all linear ones if empty.
            method_options: Other settings of the method, as a JSON object.
            json: Print the result as JSON.
        """
        faults = _Faults()
        kind = faults.member("task", task, list(TaskKind))
        pooled = faults.member("pooling", pooling, list(Pooling))
        length = faults.whole("max_length", max_length)
        highest = faults.whole("rank_max", rank_max)
        targets = faults.names("target_modules", target_modules)
        named = faults.names("labels", labels)
        named_method, options = faults.text("method", method), faults.table("method_options", method_options)
        source, target = faults.text("model", model), Path(faults.text("out", out))
        as_json = faults.flag("json", json)
        faults.check()
        described = Task(
            kind=TaskKind(kind),
            max_length=length,
            labels=tuple(named),
            pooling=Pooling(pooled),
            template=None if template is None else str(template),
        )
        if targets:
            options["target_modules"] = tuple(targets)
        return _planned(lambda: _write_manifest(source, described, target, highest, named_method, options), as_json)

    def keygen(self, out: str, *, json: bool = False) -> Plan:
        """Make a key, for runs where the operator enrols devices by hand; prints the public half to hand over.

        Args:
            out: File to write, readable by you alone; give it to `join` with --key.
            json: Print the result as JSON.
        """
        faults = _Faults()
        path, as_json = Path(faults.text("out", out)), faults.flag("json", json)
        faults.check()
        return _planned(lambda: _make_key(path), as_json)

    def join(
        self,
        ticket: str,
        model: str,
        data: str,
        *,
        eval_data: str | None = None,
        rank: int | None = None,
        lora_alpha: float | None = None,
        use_rslora: bool = False,
        quantization: str = "nf4",
        residual: bool = False,
        micro_batch_size: int | None = None,
        device: str | None = None,
        epsilon_max: float | None = None,
        state_dir: str | None = None,
        key: str | None = None,
        name: str | None = None,
        progress: bool = False,
        json: bool = False,
    ) -> Plan:
        """Take part in a run until it is over.

        Args:
            ticket: The operator's ticket file.
            model: Hub id or folder of the base model.
            data: Training data: a JSONL, CSV or NPZ file, a folder of such files or of pictures, or a hub data set.
            eval_data: Evaluation data.
            rank: LoRA rank, or adapter width, of this device; the run's default if not given.
            lora_alpha: PEFT's lora_alpha.
            use_rslora: Scale by alpha/sqrt(rank).
            quantization: nf4, int8, bf16 or fp32.
            residual: Take the part of the global adapter above the rank as a frozen adapter.
            micro_batch_size: Examples in one forward pass.
            device: torch device.
            epsilon_max: Privacy budget of this device: train with noise until it is spent, and never without.
            state_dir: Folder for key, outbox and downloads.
            key: Key file of `keygen`.
            name: What the operator's status calls this device.
            progress: Show a progress bar.
            json: Print one JSON line per round, and the summary as JSON.
        """
        faults = _Faults()
        as_json, bar = faults.flag("json", json), faults.flag("progress", progress)
        optional = {"eval_data": eval_data, "device": device, "state_dir": state_dir, "key": key, "name": name}
        texts = {
            argument: None if value is None else faults.text(argument, value) for argument, value in optional.items()
        }
        ticket_file, source = faults.text("ticket", ticket), faults.text("model", model)
        rows = faults.text("data", data)
        faults.check()
        client = EdgeClient(
            ticket_file,
            source,
            rows,
            eval_data=texts["eval_data"],
            rank=rank,
            lora_alpha=lora_alpha,
            use_rslora=use_rslora,
            quantization=quantization,
            residual=residual,
            micro_batch_size=micro_batch_size,
            device=texts["device"],
            epsilon_max=epsilon_max,
            state_dir=texts["state_dir"],
            key=texts["key"],
            name=texts["name"],
            on_round=_print_round_json if as_json else _print_round,
            progress_bar=bar,
        )
        return _planned(lambda: asdict(client.run()), as_json)

    def merge_export(self, exported: str, model: str, out: str, *, json: bool = False) -> Plan:
        """Write an exported run as a plain transformers checkpoint, where the model has a place for all of it.

        Args:
            exported: Folder that `tributary-aggregator export --format tributary` wrote.
            model: Hub id or folder of the base model that the run tuned.
            out: Folder to write.
            json: Print the result as JSON.
        """
        faults = _Faults()
        folder, source, target = (
            faults.text(name, value) for name, value in (("exported", exported), ("model", model), ("out", out))
        )
        as_json = faults.flag("json", json)
        faults.check()
        return _planned(lambda: _merge_export(folder, source, target), as_json)

    def leave(
        self,
        ticket: str | None = None,
        *,
        state_dir: str | None = None,
        key: str | None = None,
        force: bool = False,
        json: bool = False,
    ) -> Plan:
        """Delete this device's state of a run, its key included; the operator can then revoke the device.

        Args:
            ticket: The ticket file joined with.
            state_dir: The folder, if `join` was given one.
            key: Key file, if `join` was given one; it is not deleted.
            force: Delete updates that are not delivered yet, too.
            json: Print the result as JSON.
        """
        faults = _Faults()
        forced, as_json = faults.flag("force", force), faults.flag("json", json)
        if (ticket is None) == (state_dir is None):
            faults.add("leave: name either the ticket or --state-dir")
        faults.check()
        if state_dir is not None:
            folder = Path(str(state_dir))
        else:
            folder = default_folder(read_ticket(str(ticket)), None if key is None else Path(str(key)))
        if not (folder / "run.json").is_file():
            raise ConfigError(f"{folder} holds no state of a run: nothing to leave")
        return _planned(lambda: _leave(folder, forced), as_json)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command line and returns the exit code.

    Args:
        argv: Arguments without the program's name; None: those of the process.
    """
    silence_kernel_hint()
    arguments = list(sys.argv[1:] if argv is None else argv)
    as_json = "--json" in arguments
    try:
        plan = fire.Fire(Commands, command=arguments, name="tributary-client", serialize=lambda result: None)
        if not isinstance(plan, Plan) or plan not in _ACTIONS:
            print(_USAGE, file=sys.stderr)
            return 2
        return _execute(plan)
    except EdgeClientError as error:
        return _complain(error, as_json=as_json)
    except KeyboardInterrupt:
        print("interrupted; what is trained waits in the outbox for the next `join`", file=sys.stderr)
        return 130


class _Faults:
    """Checks values whose types fire guessed, and reports all that is wrong at once."""

    def __init__(self) -> None:
        self._found: list[str] = []

    def add(self, fault: str) -> None:
        self._found.append(fault)

    def check(self) -> None:
        if self._found:
            raise ConfigError("; ".join(self._found))

    def text(self, name: str, value: object) -> str:
        """Text; fire makes numbers of texts that look like one."""
        if isinstance(value, bool) or not isinstance(value, str | int | float) or value == "":
            self.add(f"{name}: expected a text, got {value!r}")
        return str(value)

    def whole(self, name: str, value: object) -> int:
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
        self.add(f"{name}: expected a whole number above 0, got {value!r}")
        return 1

    def flag(self, name: str, value: object) -> bool:
        if not isinstance(value, bool):
            self.add(f"{name}: a switch that takes no value, got {value!r}")
        return bool(value)

    def member(self, name: str, value: object, members: Sequence[str]) -> str:
        if value in members:
            return str(value)
        self.add(f"{name}: expected one of {', '.join(members)}, got {value!r}")
        return members[0]

    def table(self, name: str, value: object) -> dict[str, Any]:
        """A JSON object, of which fire makes a map; empty if nothing is given."""
        try:
            found = json.loads(value) if isinstance(value, str) and value else value or {}
        except ValueError:
            found = None
        if not isinstance(found, dict):
            self.add(f"{name}: expected a JSON object, got {value!r}")
            return {}
        return {str(key): tuple(each) if isinstance(each, list) else each for key, each in found.items()}

    def names(self, name: str, value: object) -> list[str]:
        """Names separated by commas, of which fire makes a tuple."""
        parts = [str(part) for part in value] if isinstance(value, tuple | list) else str(value).split(",")
        found = [part.strip() for part in parts if part.strip()]
        if len(set(found)) != len(found):
            self.add(f"{name}: one name stands there twice")
        return found


def _write_manifest(
    model: str, task: Task, out: Path, rank_max: int, method: str, options: Mapping[str, Any]
) -> dict[str, Any]:
    try:
        from edge_client.methods import read_method
        from edge_client.model.manifest_writer import write_manifest
    except ImportError as error:
        raise ConfigError(f"reading a model needs torch ({error}): pip install 'tributary-fl[client]'") from error
    try:
        manifest = write_manifest(model, task, rank_max=rank_max, method=read_method(method, options))
        write_durably(out, json.dumps(json.loads(manifest.to_json()), indent=1, sort_keys=True).encode() + b"\n")
    except (LocalProtocolError, OSError) as error:
        raise ConfigError(str(error)) from error
    return {
        "manifest": str(out),
        "digest": manifest.digest,
        "base": manifest.base.name,
        "modules": len(manifest.low_rank),
        "dense_tensors": len(manifest.dense),
    }


def _make_key(path: Path) -> dict[str, Any]:
    try:
        key = create_key(path)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error}") from error
    return {"key_file": str(path), "public_key": key.public, "device": client_id(key.public)}


def _merge_export(exported: str, model: str, out: str) -> dict[str, Any]:
    save_merged(exported, model, out)
    return {"checkpoint": out, "base": model}


def _leave(folder: Path, force: bool) -> dict[str, Any]:
    with Home(folder) as home:
        if not force and (waiting := len(home.outbox.entries())):
            raise ConfigError(f"{waiting} update(s) are not delivered yet: `join` again, or say --force to lose them")
        device = home.key().client_id
        home.remove()
    return {"left": str(folder), "device": device}


def _print_round(result: RoundResult) -> None:
    print(f"round {result.round}: " + ("accepted" if result.accepted else f"refused, {result.reason}"), flush=True)


def _print_round_json(result: RoundResult) -> None:
    print(json.dumps(asdict(result)), flush=True)


def _complain(error: EdgeClientError, *, as_json: bool) -> int:
    code = next((code for kind, code in _EXIT_CODES.items() if isinstance(error, kind)), 1)
    if as_json:
        print(json.dumps({"error": type(error).__name__, "message": str(error), "exit_code": code}))
    print(f"tributary-client: {type(error).__name__}: {error}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
