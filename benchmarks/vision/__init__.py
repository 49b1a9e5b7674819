"""A vision transformer small enough for a CPU, pre-trained on part of the data that studies federate the rest of."""
