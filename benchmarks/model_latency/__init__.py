"""How fast the model runs on this machine, beside what its arithmetic costs."""
