"""What every run stands on: loaders, the loop, what is saved and resumed, the run's folder."""
