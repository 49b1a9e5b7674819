"""The client SDK: embeds federated fine-tuning in an app on the device that holds the data."""
