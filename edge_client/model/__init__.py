"""The base model: found, fingerprinted, loaded in any precision, described in a manifest."""
