"""A device for integration tests: takes part in one run and prints, as JSON, what it came to hold.

``numpy`` in the settings gives a NumPy trainer; otherwise they are arguments of EdgeClient, and ``texts`` are what the
tuned model is tried on in the end.
"""

import json
import sys

from edge_client import EdgeClient
from edge_client.trainers.numpy_trainer import NumpyTrainer


def main() -> None:
    settings = json.loads(sys.argv[1])
    numpy, texts = settings.pop("numpy", None), settings.pop("texts", None)
    if numpy is not None:
        settings["trainer"] = NumpyTrainer(**numpy)
    rounds = []
    client = EdgeClient(**settings, on_round=lambda result: rounds.append([result.round, result.accepted]))
    summary = client.run()
    outcome = {"rounds": rounds, "version": summary.version, "rank": summary.rank, "sent": summary.bytes_sent}
    if texts is not None:
        outcome["outputs"] = outputs(client.model, settings["model"], texts)
    print(json.dumps(outcome))


def outputs(model: object, folder: str, texts: list[str]) -> list[float]:
    """What the tuned model makes of some texts: last hidden states and logits, flat."""
    import torch
    import transformers

    tokens = transformers.AutoTokenizer.from_pretrained(folder)(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        found = model.eval()(**tokens, output_hidden_states=True)
    return torch.cat([found.hidden_states[-1].flatten(), found.logits.flatten()]).tolist()


if __name__ == "__main__":
    main()
