"""Learning, forgetting and their controls on the tabletop suite, as a report anybody can remake."""
