"""Training and evaluation: one loop, one builder, one short runner per mode of the command line."""
