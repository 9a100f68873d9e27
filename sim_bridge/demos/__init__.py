"""Demonstrations recorded with scripted experts, as frames to clone."""
