"""What the studies of published systems share: one federation from data to scores, whatever is tuned and how."""

from benchmarks.studies.federated import Federated, run_federated

__all__ = ["Federated", "run_federated"]
