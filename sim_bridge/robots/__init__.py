"""Robots in real time: a fixed control rate, chunks that overlap, limits, a watchdog."""
