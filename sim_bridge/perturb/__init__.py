"""Perturbed variants of a suite: one axis of generalisation each, to be combined freely."""
