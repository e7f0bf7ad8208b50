"""What a person starts: a runner for each mode of main.py, and the commands `python -m tools.X`."""
