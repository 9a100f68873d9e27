"""Every method on the tabletop suite, with one budget, in one report."""
