"""The cases to time, one module per op folder of `asegnet_fast/ops`, of the same name."""
