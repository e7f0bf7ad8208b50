"""Command line, configs, checkpoints, logging, seeds and devices: what every run needs and no model knows."""
