"""What trains, behind :class:`edge_client.trainer.Trainer`: torch, a Hugging Face trainer, or NumPy."""
