"""A device for integration tests: takes part in one run and prints, as JSON, what it came to hold.

``numpy`` in the settings gives a NumPy trainer; otherwise they are arguments of EdgeClient, and ``texts`` are what the
tuned model is tried on in the end.
"""

import json
import sys

from edge_client import EdgeClient
from edge_client.numpy_trainer import NumpyTrainer


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
        outcome["logits"] = logits(client.model, settings["model"], texts)
    print(json.dumps(outcome))


def logits(model: object, folder: str, texts: list[str]) -> list[list[float]]:
    """What the tuned model says of some texts."""
    import torch
    import transformers

    tokens = transformers.AutoTokenizer.from_pretrained(folder)(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        return model.eval()(**tokens).logits.float().tolist()


if __name__ == "__main__":
    main()
